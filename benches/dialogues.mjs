/** MultiWOZ turns as documents of the embedded dialogue model. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gunzipSync } from 'node:zlib'

export const MODEL = fileURLToPath(new URL('../models/dst', import.meta.url))

/** Tokens of a document that the model was trained for, without the one that ends it. */
const TOKENS = 190

/** The test turns below the folder TREFOIL_DATA: `{ dialogue_id, turn, context, state }`. */
export async function turns() {
  return await lines('test.jsonl.gz')
}

/** The slots, in alphabetical order: `hotel-area`, … */
export async function slots() {
  return (await lines('slots.jsonl')).map(({ slot }) => slot).toSorted()
}

/** What a slot is asked with. */
export function promptOf(slot) {
  return `${slot.replace('-', ' ')}:`
}

/** The document of a turn: the last lines of the dialogue that fit, whole ones. */
export async function documentOf(model, { context }) {
  const said = context.split('\n')
  for (let first = 0; first < said.length - 1; first += 1) {
    const text = said.slice(first).join(' ')
    if ((await model.tokenize(text)).length <= TOKENS + 1) return text
  }
  return said.at(-1)
}

async function lines(name) {
  const data = process.env.TREFOIL_DATA
  if (!data) throw new Error('TREFOIL_DATA is not set; it names the folder of multiwoz24/')
  const bytes = await readFile(join(data, 'multiwoz24', name))
  const text = (name.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString()
  return text.trimEnd().split('\n').map((line) => JSON.parse(line))
}
