/** The limits that a JSON Schema sets to a single value or a list of them. */

import type { JsonSchema } from '../schema.js'
import { dateOf } from './dates.js'

const TIME = /^([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)?(Z|[-+]\d\d:\d\d)?$/i

/** Formats that are checked; any other is a remark. */
const FORMATS: Readonly<Record<string, (text: string) => boolean>> = {
  date: (text) => text.length === 10 && dateOf(text) !== undefined,
  'date-time': (text) => /T.*(Z|[-+]\d\d:\d\d)$/i.test(text) && dateOf(text) !== undefined,
  time: (text) => TIME.test(text)
}

/** What of `schema` a value breaks; undefined where it keeps all. */
export function breach(schema: JsonSchema, value: unknown): string | undefined {
  const limit = (keyword: string, type: string): number | undefined => {
    const found = schema[keyword]
    return typeof found === 'number' && type === (Array.isArray(value) ? 'array' : typeof value) ? found : undefined
  }
  const size = typeof value === 'string' ? [...value].length : Array.isArray(value) ? value.length : Number(value)
  const { pattern, format, uniqueItems } = schema
  const least = limit('minimum', 'number') ?? limit('minLength', 'string') ?? limit('minItems', 'array')
  if (least !== undefined && size < least) return `expected at least ${measure(value, least)}`
  const most = limit('maximum', 'number') ?? limit('maxLength', 'string') ?? limit('maxItems', 'array')
  if (most !== undefined && size > most) return `expected at most ${measure(value, most)}`
  const above = limit('exclusiveMinimum', 'number')
  if (above !== undefined && size <= above) return `expected more than ${above}`
  const below = limit('exclusiveMaximum', 'number')
  if (below !== undefined && size >= below) return `expected less than ${below}`
  const unit = limit('multipleOf', 'number')
  // 0.3 is a multiple of 0.1, whatever binary fractions say.
  if (unit !== undefined && Math.abs(size / unit - Math.round(size / unit)) > 1e-9) return `expected a multiple of ${unit}`
  if (uniqueItems === true && Array.isArray(value) && new Set(value).size < value.length) return 'expected no item twice'
  if (typeof value !== 'string') return undefined
  if (typeof pattern === 'string' && !new RegExp(pattern, 'u').test(value)) return `expected a match of ${pattern}`
  if (typeof format === 'string' && Object.hasOwn(FORMATS, format) && !FORMATS[format]?.(value)) return `expected a ${format}`
  return undefined
}

function measure(value: unknown, limit: number): string {
  return Array.isArray(value) ? `${limit} items` : typeof value === 'string' ? `${limit} characters` : String(limit)
}
