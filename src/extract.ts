/** Values for a schema's fields, out of a document: one prompt a field, all answered at once. */

import type { Answers } from './answers.js'
import type { AskOptions } from './document.js'
import { ExtractionError } from './errors.js'
import { fieldsOf, isLeaf, leavesOf, nameOf, type Field, type Leaf } from './extract/fields.js'
import { isNothing, parse } from './extract/parse.js'
import { refuse } from './options.js'
import { isStandard, type Infer, type Issue, type JsonSchema, type StandardSchema } from './schema.js'

/** How fields are extracted. `maxTokens` is 64 and `stop` a line break, where they are not given. */
export interface ExtractOptions extends AskOptions {
  /** Say how sure the model is of each field: an `Extracted` is given. */
  confidence?: boolean
}

/** A value and how sure the model is of it. */
export interface Extracted<Value> {
  value: Value
  /**
   * For each field that was asked for, by its path (`hotel.area`): the geometric mean of the probabilities of its
   * answer's tokens, from 0 to 1. An answer without tokens has none.
   */
  confidence: Record<string, number>
}

const DEFAULTS = { maxTokens: 64, stop: '\n' }

/** Stands for a field that is not there. */
const ABSENT = Symbol('absent')

/** Asks `ask` for the fields of `schema`, each prompt behind `lead`. */
export async function extractFrom<S extends StandardSchema | JsonSchema>(
  ask: (prompts: string[], options: AskOptions) => Answers,
  lead: string,
  schema: S,
  given?: ExtractOptions
): Promise<Infer<S> | Extracted<Infer<S>>> {
  const { confidence: rated = false, ...options } = given ?? {}
  if (typeof rated !== 'boolean') refuse('options.confidence', rated, 'true or false')
  const field = fieldsOf(schema)
  const leaves = leavesOf(field)
  const prompts = leaves.map(({ prompt }) => lead + prompt)
  const answers = ask(prompts, { ...DEFAULTS, ...options, ...(rated ? { logprobs: true } : {}) })
  const confidence = rated ? await confidences(answers, leaves) : {}
  const texts = await answers.texts()
  const said = new Map(leaves.map((leaf, at) => [leaf, texts[at] ?? '']))
  const value = (await validated(schema, build(field, said), said)) as Infer<S>
  return rated ? { value, confidence } : value
}

/** How sure the model is of each leaf, by its path. */
async function confidences(answers: Answers, leaves: readonly Leaf[]): Promise<Record<string, number>> {
  const sums = leaves.map(() => ({ log: 0, tokens: 0 }))
  for await (const { prompt, tokens } of answers) {
    const sum = sums[prompt]
    for (const { logprob } of tokens) {
      // A token that only a draft model rated has none.
      if (!sum || logprob === undefined) continue
      sum.log += logprob
      sum.tokens += 1
    }
  }
  const rated = leaves.map(({ path }, at) => [nameOf(path), sums[at] ?? { log: 0, tokens: 0 }] as const)
  return Object.fromEntries(rated.filter(([, { tokens }]) => tokens > 0).map(([name, { log, tokens }]) => [name, Math.exp(log / tokens)]))
}

/** The value of all fields. */
function build(field: Field, said: ReadonlyMap<Leaf, string>): unknown {
  const value = valueOf(field, said, field.optional)
  return value === ABSENT ? undefined : value
}

/**
 * The value of a field, or `ABSENT`.
 *
 * @param loose whether the field or an object around it may be left out, so that nothing is an answer
 */
function valueOf(field: Field, said: ReadonlyMap<Leaf, string>, loose: boolean): unknown {
  const value = isLeaf(field) ? leafValue(field, said.get(field) ?? '', loose) : groupValue(field, said, loose)
  if (value !== ABSENT) return value
  if ('fallback' in field) return structuredClone(field.fallback)
  return field.nullable && !field.optional ? null : ABSENT
}

function groupValue(field: Exclude<Field, Leaf>, said: ReadonlyMap<Leaf, string>, loose: boolean): unknown {
  const apart = loose || field.nullable
  const members = field.members.map(([name, member]) => [member, name, valueOf(member, said, apart || member.optional)] as const)
  const there = members.filter(([member, , value]) => value !== ABSENT && !isDefault(member, value, said))
  if (apart && there.length === 0) return ABSENT
  const missing = members.find(([member, , value]) => value === ABSENT && !member.optional)
  if (missing) {
    const [leaf] = leavesOf(missing[0])
    const name = nameOf(missing[0].path)
    throw failed(name, (leaf && said.get(leaf)) ?? '', 'it may not be left out beside the others')
  }
  return Object.fromEntries(members.flatMap(([, name, value]) => (value === ABSENT ? [] : [[name, value]])))
}

/** Whether nothing was said of a field, and its value stands in for that. */
function isDefault(field: Field, value: unknown, said: ReadonlyMap<Leaf, string>): boolean {
  if (value !== null && !('fallback' in field)) return false
  return leavesOf(field).every((leaf) => isNothing(said.get(leaf) ?? ''))
}

function leafValue(leaf: Leaf, text: string, loose: boolean): unknown {
  // An enumeration may have a member that reads like nothing.
  const named = leaf.kinds.some((kind) => kind.type === 'enum' && 'value' in parse([kind], text))
  if (isNothing(text) && !named && (loose || leaf.nullable)) return ABSENT
  const found = parse(leaf.kinds, text)
  if ('wrong' in found) throw failed(nameOf(leaf.path), text, found.wrong)
  return found.value
}

/** What the schema's own validation makes of `value`; a JSON Schema's limits were kept while parsing. */
async function validated(schema: unknown, value: unknown, said: ReadonlyMap<Leaf, string>): Promise<unknown> {
  if (!isStandard(schema)) return value
  const checked = await schema['~standard'].validate(value)
  if (!checked.issues) return checked.value
  const [issue] = checked.issues
  const path = pathOf(issue)
  const leaf = [...said.keys()].find((leaf) => leaf.path.every((key, at) => key === path[at]))
  throw failed(nameOf(leaf?.path ?? path), (leaf && said.get(leaf)) ?? '', issue?.message ?? 'the schema refuses it')
}

function pathOf(issue: Issue | undefined): string[] {
  return (issue?.path ?? []).map((step) => String(typeof step === 'object' ? step.key : step))
}

function failed(field: string, text: string, wrong: string): ExtractionError {
  const name = field === '' ? 'the value' : `'${field}'`
  return new ExtractionError(`${name} can't be '${text.trim()}': ${wrong}`, { field, text })
}
