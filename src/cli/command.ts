/** What commands have in common: their shape, numbers from text, and how a failure is said. */

import { stdout } from 'node:process'
import { parseArgs, type ParseArgsConfig } from 'node:util'

/** One command of the command line. */
export interface Command {
  /** One line for the list of commands. */
  readonly summary: string
  /** Runs it on the arguments behind its name; what it throws is said in one line. */
  run(args: string[]): Promise<void>
}

/** The values of options as `parseArgs` reads them. */
export type ValuesOf<O extends NonNullable<ParseArgsConfig['options']>> = ReturnType<
  typeof parseArgs<{ args: string[]; options: O; allowPositionals: true }>
>['values']

/**
 * A command that explains itself with `help` where `--help` is given, and else works on what it was given until Ctrl-C
 * aborts the signal; a second Ctrl-C ends the process as usual.
 */
export function command<const O extends NonNullable<ParseArgsConfig['options']>>(
  { summary, help, options }: { summary: string; help: string; options: O },
  work: (positionals: string[], values: ValuesOf<O>, signal: AbortSignal) => Promise<void>
): Command {
  const run = async (args: string[]): Promise<void> => {
    const all = { ...options, help: { type: 'boolean', short: 'h' } } as const
    const { values, positionals } = parseArgs({ args, options: all, allowPositionals: true })
    if ((values as { help?: boolean }).help) {
      stdout.write(help)
      return
    }
    const controller = new AbortController()
    const interrupt = (): void => controller.abort()
    process.once('SIGINT', interrupt)
    try {
      await work(positionals, values as ValuesOf<O>, controller.signal)
    } finally {
      process.off('SIGINT', interrupt)
    }
  }
  return { summary, run }
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
