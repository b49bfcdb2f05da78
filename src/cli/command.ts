/** What commands have in common: their shape, numbers from text, and how a failure is said. */

/** One command of the command line. */
export interface Command {
  /** One line for the list of commands. */
  readonly summary: string
  /** Runs it on the arguments behind its name; what it throws is said in one line. */
  run(args: string[]): Promise<void>
}

/**
 * The number that an option's text means; undefined where the option is not given. Ranges are the engine's business.
 *
 * @throws when the text is no number
 */
export function numberOf(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  const number = text.trim() === '' ? Number.NaN : Number(text)
  if (Number.isNaN(number)) throw new Error(`--${option} is '${text}'; allowed: a number`)
  return number
}

/** A failure in one line: its first line and what caused it. */
export function said(error: unknown): string {
  const lines: string[] = []
  for (let at: unknown = error; at !== undefined && at !== null; at = at instanceof Error ? at.cause : undefined) {
    const text = at instanceof Error ? at.message : String(at)
    const [line = ''] = text.split('\n')
    if (line !== '' && !lines.some((earlier) => earlier.includes(line))) lines.push(line)
  }
  return lines.join(': ') || 'failed without saying why'
}

/** Only the values that are given, because an option that is undefined is none. */
export function given<T extends object>(values: T): { [K in keyof T]?: NonNullable<T[K]> } {
  const there = Object.entries(values).filter(([, value]) => value !== undefined)
  return Object.fromEntries(there) as { [K in keyof T]?: NonNullable<T[K]> }
}
