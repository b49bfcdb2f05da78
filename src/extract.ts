/** Values for a schema's fields, out of a document: one prompt a field, all answered at once. */

import type { Answers } from './answers.js'
import type { AskOptions } from './document.js'
import { ExtractionError } from './errors.js'
import { checkOf, type Check } from './extract/check.js'
import { fieldsOf, isLeaf, leavesOf, nameOf, type Field, type Leaf } from './extract/fields.js'
import { isNothing, readingsOf } from './extract/parse.js'
import { refuse } from './options.js'
import type { Infer, Issue, JsonSchema, StandardSchema } from './schema.js'

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

/** The answer of each leaf, and which of its readings is meant. */
type Said = ReadonlyMap<Leaf, { readonly text: string; reading: number }>

/** Asks `ask` for the fields of `schema`, each prompt behind `lead`. */
export async function extractFrom<S extends StandardSchema | JsonSchema>(
  ask: (prompts: string[], options: AskOptions) => Answers,
  lead: string,
  schema: S,
  given?: ExtractOptions
): Promise<Infer<S> | Extracted<Infer<S>>> {
  if (given !== undefined && (typeof given !== 'object' || given === null)) refuse('options', given, 'an object')
  const { confidence: rated = false, ...rest } = given ?? {}
  // An option that is undefined is none.
  const options = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined)) as AskOptions
  if (typeof rated !== 'boolean') refuse('options.confidence', rated, 'true or false')
  const field = fieldsOf(schema)
  const leaves = leavesOf(field)
  const check = await checkOf(schema)
  const prompts = leaves.map(({ prompt }) => lead + prompt)
  const answers = ask(prompts, { ...DEFAULTS, ...options, ...(rated ? { logprobs: true } : {}) })
  const confidence = rated ? await confidences(answers, leaves) : {}
  const texts = await answers.texts()
  const said: Said = new Map(leaves.map((leaf, at) => [leaf, { text: texts[at] ?? '', reading: 0 }]))
  const value = (await validated(check, field, said)) as Infer<S>
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

/** The value of all fields that the schema lets through; a leaf that it refuses is read as the next of what it can mean. */
async function validated(check: Check, field: Field, said: Said): Promise<unknown> {
  for (;;) {
    const checked = await check(build(field, said))
    if (!checked.issues) return checked.value
    const refused = new Set(checked.issues.map((issue) => leafOf(issue, said)))
    let more = false
    for (const leaf of refused) {
      const answer = leaf && said.get(leaf)
      if (!answer || answer.reading + 1 >= readingsOf(leaf.kinds, answer.text).values.length) continue
      answer.reading += 1
      more = true
    }
    if (more) continue
    const [issue] = checked.issues
    const leaf = leafOf(issue, said)
    throw failed(nameOf(leaf?.path ?? pathOf(issue)), textOf(leaf, said), issue?.message ?? 'the schema refuses it')
  }
}

/** The value of all fields. */
function build(field: Field, said: Said): unknown {
  const value = valueOf(field, said, field.optional)
  return value === ABSENT ? undefined : value
}

/**
 * The value of a field, or `ABSENT`.
 *
 * @param loose whether the field or an object around it may be left out, so that nothing is an answer
 */
function valueOf(field: Field, said: Said, loose: boolean): unknown {
  const value = isLeaf(field) ? leafValue(field, said, loose) : groupValue(field, said, loose)
  if (value !== ABSENT) return value
  if ('fallback' in field) return structuredClone(field.fallback)
  return field.nullable && !field.optional ? null : ABSENT
}

function groupValue(field: Exclude<Field, Leaf>, said: Said, loose: boolean): unknown {
  const apart = loose || field.nullable
  const members = field.members.map(([name, member]) => [member, name, valueOf(member, said, apart || member.optional)] as const)
  const there = members.filter(([member, , value]) => value !== ABSENT && !isDefault(member, value, said))
  if (apart && there.length === 0) return ABSENT
  const missing = members.find(([member, , value]) => value === ABSENT && !member.optional)
  if (missing) {
    const [leaf] = leavesOf(missing[0])
    throw failed(nameOf(missing[0].path), textOf(leaf, said), 'it may not be left out beside the others')
  }
  return Object.fromEntries(members.flatMap(([, name, value]) => (value === ABSENT ? [] : [[name, value]])))
}

/** Whether nothing was said of a field, and its value stands in for that. */
function isDefault(field: Field, value: unknown, said: Said): boolean {
  if (value !== null && !('fallback' in field)) return false
  return leavesOf(field).every((leaf) => isNothing(textOf(leaf, said)))
}

function leafValue(leaf: Leaf, said: Said, loose: boolean): unknown {
  const { text, reading } = said.get(leaf) ?? { text: '', reading: 0 }
  // An enumeration may have a member that reads like nothing.
  const named = leaf.kinds.some((kind) => kind.type === 'enum' && readingsOf([kind], text).values.length > 0)
  if (isNothing(text) && !named && (loose || leaf.nullable)) return ABSENT
  const { values, wrong } = readingsOf(leaf.kinds, text)
  if (values.length === 0) throw failed(nameOf(leaf.path), text, wrong)
  return values[reading]
}

function textOf(leaf: Leaf | undefined, said: Said): string {
  return (leaf && said.get(leaf)?.text) ?? ''
}

/** The leaf that an issue is about, if it is about one. */
function leafOf(issue: Issue | undefined, said: Said): Leaf | undefined {
  const path = pathOf(issue)
  return [...said.keys()].find((leaf) => leaf.path.every((key, at) => key === path[at]))
}

function pathOf(issue: Issue | undefined): string[] {
  return (issue?.path ?? []).map((step) => String(typeof step === 'object' ? step.key : step))
}

function failed(field: string, text: string, wrong: string): ExtractionError {
  const name = field === '' ? 'the value' : `'${field}'`
  return new ExtractionError(`${name} can't be '${text.trim()}': ${wrong}`, { field, text })
}
