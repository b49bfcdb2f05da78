/** Dates as text. */

const DATE = /^(\d{4}-\d\d-\d\d)(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[-+]\d\d:\d\d)?)?$/i

/** The moment that an ISO date means, the date's beginning in UTC where it names no time; undefined for no such day. */
export function dateOf(text: string): Date | undefined {
  const [, day] = DATE.exec(text) ?? []
  if (day === undefined) return undefined
  const start = new Date(`${day}T00:00:00Z`)
  // A day past its month's end is moved on without a word.
  if (Number.isNaN(start.getTime()) || start.toISOString().slice(0, 10) !== day) return undefined
  const date = new Date(text)
  return Number.isNaN(date.getTime()) ? undefined : date
}
