/** An answer's text as the value that its field wants. */

import { dateOf } from './dates.js'
import type { Kind } from './fields.js'
import { breach } from './limits.js'

/** A value, or what is wrong with the text. */
export type Parsed = { readonly value: unknown } | { readonly wrong: string }

const NUMBER = /^[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?(e[-+]?\d+)?$/i
const WORDS: Readonly<Record<string, boolean>> = { true: true, yes: true, false: false, no: false }

/** Whether a text says that there is nothing to say. */
export function isNothing(text: string): boolean {
  return ['', 'none', 'null'].includes(text.trim().toLowerCase())
}

/** Reads `text` as the first of `kinds` that it can be. */
export function parse(kinds: readonly Kind[], text: string): Parsed {
  let wrong: string | undefined
  for (const kind of kinds) {
    const found = read(kind, text.trim())
    if ('value' in found) {
      const broken = kind.limits && breach(kind.limits, found.value)
      if (broken === undefined) return found
      wrong ??= broken
    } else {
      wrong ??= found.wrong
    }
  }
  return { wrong: wrong ?? 'no value is allowed' }
}

function read(kind: Kind, text: string): Parsed {
  switch (kind.type) {
    case 'enum':
      return choice(kind.values, text)
    case 'boolean': {
      const value = WORDS[text.toLowerCase()]
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
  return { wrong: `expected one of ${values.map((value) => `'${String(value)}'`).join(', ')}` }
}

/** Items between commas, semicolons or line breaks, or a JSON array. */
function list(kinds: readonly Kind[], text: string): Parsed {
  if (isNothing(text)) return { value: [] }
  const items = jsonList(text) ?? text.split(/[,;\n]/).filter((item) => item.trim() !== '')
  const value: unknown[] = []
  for (const item of items) {
    const found = parse(kinds, item)
    if ('wrong' in found) return found
    value.push(found.value)
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
