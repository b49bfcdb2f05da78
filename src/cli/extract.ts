/** `trefoil extract`: fills a JSON Schema from a document. */

import { stdout } from 'node:process'

import { isJsonSchema, type JsonSchema } from '../schema.js'
import { command, type Command } from './command.js'
import { DOCUMENT_HELP, fileText, line, textOf } from './input.js'
import { generateOptions, LOADING_HELP, LOADING_OPTIONS, withModel, WRITING_HELP, WRITING_OPTIONS } from './writing.js'

const HELP = `Usage: trefoil extract MODEL DOCUMENT SCHEMA [options]

Reads the document once, asks for every field of the schema in parallel, and prints the fields that were found.

MODEL is a folder, a .gguf file, or a model on the hub: owner/name[:file].
${DOCUMENT_HELP}
SCHEMA is a file with a JSON Schema. A field is asked for by its description or else its path: hotel area:

${WRITING_HELP}
${LOADING_HELP}
  --json                      print the value, and how sure the model is of each field, as JSON
  --help                      print this

  trefoil extract models/dst "user: i need a cheap hotel in the north ." hotel.json
`

const OPTIONS = { ...WRITING_OPTIONS, ...LOADING_OPTIONS, json: { type: 'boolean' } } as const

const ABOUT = { summary: 'fills a JSON Schema from a document', help: HELP, options: OPTIONS }

/** The command. */
export const extract: Command = command(ABOUT, async ([source, document, file, ...more], values, signal) => {
  if (source === undefined || document === undefined || file === undefined) {
    const missing = source === undefined ? 'a model' : document === undefined ? 'a document' : 'a schema'
    throw new Error(`${missing} is missing; usage: trefoil extract MODEL DOCUMENT SCHEMA`)
  }
  if (more.length > 0) throw new Error(`'${more[0]}' is one argument too many; a text with spaces needs quotes`)
  const [text, schema, options] = [await textOf(document, signal), await schemaOf(file), generateOptions(values)]
  await withModel(source, values, signal, async (model) => {
    const encoded = await model.read(text, { signal })
    const extracted = await encoded.extract(schema, { ...options, confidence: true, signal })
    if (values.json) {
      const { tokens, encoderForwards } = encoded
      stdout.write(`${JSON.stringify({ document: { tokens, encoderForwards }, ...extracted })}\n`)
      return
    }
    const rows = rowsOf(extracted.value)
    const width = Math.max(0, ...rows.map(([name]) => name.length))
    for (const [name, said] of rows) stdout.write(`${name.padEnd(width)}  ${said}\n`)
  })
})

/** The single values of a value, each with its path. */
function rowsOf(value: unknown, path = ''): [name: string, said: string][] {
  if (!isJsonSchema(value)) return [[path, line(Array.isArray(value) ? value.join(', ') : String(value))]]
  return Object.entries(value).flatMap(([key, member]) => rowsOf(member, path === '' ? key : `${path}.${key}`))
}

async function schemaOf(file: string): Promise<JsonSchema> {
  const text = await fileText(file)
  try {
    return JSON.parse(text) as JsonSchema
  } catch (cause) {
    throw new Error(`${file} is no JSON`, { cause })
  }
}
