/** An answer's text as the value that its field wants. */

import { dateOf } from './dates.js'
import type { Kind } from './fields.js'

/** A value, or what is wrong with the text. */
type Parsed = { readonly value: unknown } | { readonly wrong: string }

/** What a text can mean, the likeliest first; and what is wrong with it where that is nothing. */
export interface Readings {
  readonly values: readonly unknown[]
  readonly wrong: string
}

const NUMBER = /^[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?(e[-+]?\d+)?$/i
const WORDS: ReadonlyMap<string, boolean> = new Map([['true', true], ['yes', true], ['false', false], ['no', false]])

/** Members of an enumeration that a message names. */
const NAMED = 10

/** Whether a text says that there is nothing to say. */
export function isNothing(text: string): boolean {
  return ['', 'none', 'null'].includes(text.trim().toLowerCase())
}

/** Reads `text` as all of `kinds` that it can be. */
export function readingsOf(kinds: readonly Kind[], text: string): Readings {
  const found = kinds.map((kind) => read(kind, text.trim()))
  const wrong = new Set(found.flatMap((one) => ('wrong' in one ? [one.wrong] : [])))
  return {
    values: found.flatMap((one) => ('value' in one ? [one.value] : [])),
    wrong: [...wrong].slice(0, NAMED).join(' or ') || 'no value is allowed'
  }
}

function read(kind: Kind, text: string): Parsed {
  switch (kind.type) {
    case 'enum':
      return choice(kind.values, text)
    case 'boolean': {
      const value = WORDS.get(text.toLowerCase())
      return value === undefined ? { wrong: 'expected yes or no' } : { value }
    }
    case 'number':
    case 'integer': {
      const value = NUMBER.test(text) && /\d/.test(text) ? Number(text.replaceAll(',', '')) : Number.NaN
      if (!Number.isFinite(value)) return { wrong: 'expected a number' }
      return kind.type === 'integer' && !Number.isInteger(value) ? { wrong: 'expected a whole number' } : { value }
    }
    case 'date': {
      const value = dateOf(text)
      return value ? { value } : { wrong: 'expected a date such as 2026-05-01' }
    }
    case 'array':
      return list(kind.items, text)
    case 'string':
      return text === '' ? { wrong: 'expected some text' } : { value: text }
  }
}

/** The member of an enumeration that the text spells, best to the letter. */
function choice(values: readonly unknown[], text: string): Parsed {
  const alike = (value: unknown) => String(value).toLowerCase() === text.toLowerCase()
  const value = values.find((value) => String(value) === text) ?? values.find(alike)
  if (value !== undefined) return { value }
  const named = values.slice(0, NAMED).map((value) => `'${String(value)}'`)
  const more = values.length > NAMED ? ` and ${values.length - NAMED} more` : ''
  return { wrong: `expected ${named.length > 1 ? 'one of ' : ''}${named.join(', ')}${more}` }
}

/** Items between commas, semicolons or line breaks, or a JSON array. */
function list(kinds: readonly Kind[], text: string): Parsed {
  if (isNothing(text)) return { value: [] }
  const items = jsonList(text) ?? text.split(/[,;\n]/).filter((item) => item.trim() !== '')
  const value: unknown[] = []
  for (const item of items) {
    const { values, wrong } = readingsOf(kinds, item)
    if (values.length === 0) return { wrong }
    value.push(values[0])
  }
  return { value }
}

function jsonList(text: string): string[] | undefined {
  if (!text.startsWith('[')) return undefined
  try {
    const items: unknown = JSON.parse(text)
    return Array.isArray(items) ? items.map(String) : undefined
  } catch {
    return undefined
  }
}
