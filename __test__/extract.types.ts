/** What the compiler must know of an extraction; nothing runs this. */
import { z } from 'zod'
import type { EncodedDocument, Extracted } from '../src/index.js'

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false

function hold<T extends true>(): T | undefined {
  return undefined
}

const schema = z.object({ area: z.enum(['north', 'south']), day: z.iso.date().transform((day) => new Date(day)) })
type Value = { area: 'north' | 'south'; day: Date }

/** The types of all forms. */
export async function forms(document: EncodedDocument): Promise<void> {
  const value = await document.extract(schema)
  hold<Same<typeof value, Value>>()
  const sampled = await document.extract(schema, { temperature: 1, confidence: false })
  hold<Same<typeof sampled, Value>>()
  const rated = await document.extract(schema, { confidence: true })
  hold<Same<typeof rated, Extracted<Value>>>()
  const plain = await document.extract({ type: 'object', properties: {} })
  hold<Same<typeof plain, unknown>>()
  // @ts-expect-error: a schema is an object
  await document.extract('object')
}
