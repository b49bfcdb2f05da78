/** A JSON Schema as fields to ask for: objects are walked, and every leaf is one prompt. */

import { InvalidOptionError } from '../errors.js'
import { isJsonSchema, isStandard, type JsonSchema, type StandardSchema } from '../schema.js'

/** The format that stands for a JavaScript `Date`, which JSON Schema has no word for. */
const DATE_OBJECT = 'date-object'

/** Fields of a schema, schemas that are looked at on the way to them, and objects within each other, at most. */
const FIELDS = 4096
const SCHEMAS = 100_000
const DEPTH = 64

/** What a leaf's text may mean. */
export type Kind =
  | { readonly type: 'string' | 'number' | 'integer' | 'boolean' | 'date' }
  | { readonly type: 'enum'; readonly values: readonly unknown[] }
  | { readonly type: 'array'; readonly items: readonly Kind[] }

/** What every field has. */
interface Common {
  /** Its property names, from the outside in. */
  readonly path: readonly string[]
  /** Whether its object may come without it. */
  readonly optional: boolean
  readonly nullable: boolean
  /** What stands in for a field that was left out; a Standard Schema fills that in by itself. */
  readonly fallback?: unknown
}

/** A field that is asked for. */
export interface Leaf extends Common {
  readonly prompt: string
  /** The alternatives, first come first served. */
  readonly kinds: readonly Kind[]
}

/** An object's field. */
interface Group extends Common {
  readonly members: readonly (readonly [name: string, field: Field])[]
}

export type Field = Leaf | Group

/** Whether the field is asked for. */
export function isLeaf(field: Field): field is Leaf {
  return 'prompt' in field
}

/** The leaves of a field, in the schema's order. */
export function leavesOf(field: Field): Leaf[] {
  return isLeaf(field) ? [field] : field.members.flatMap(([, member]) => leavesOf(member))
}

/** A path as callers know it: `hotel.area`. */
export function nameOf(path: readonly string[]): string {
  return path.join('.')
}

/**
 * The fields of a schema.
 *
 * @throws {InvalidOptionError} when there is no JSON Schema to take them from, or it has what no prompt can ask for
 */
export function fieldsOf(schema: StandardSchema | JsonSchema): Field {
  if (isStandard(schema)) return new Walk(described(schema), false).field()
  if (!isJsonSchema(schema)) throw new InvalidOptionError('schema is no object; allowed: a Standard Schema or a JSON Schema')
  return new Walk(schema, true).field()
}

/** The JSON Schema of what a Standard Schema takes: its own validation then turns that into what it gives. */
function described(schema: StandardSchema): JsonSchema {
  const { vendor, jsonSchema } = schema['~standard']
  if (!jsonSchema) {
    throw new InvalidOptionError(
      `schema is one of '${vendor}' that does not say its fields; allowed: one that implements Standard JSON Schema, or a JSON Schema`
    )
  }
  // zod refuses dates unless it is told what to write for them.
  const libraryOptions = vendor === 'zod' ? { unrepresentable: 'any', override: dates } : {}
  try {
    return jsonSchema.input({ target: 'draft-2020-12', libraryOptions })
  } catch (cause) {
    throw new InvalidOptionError(`schema can't be said as a JSON Schema by '${vendor}'`, { cause })
  }
}

function dates({ zodSchema, jsonSchema }: { zodSchema: { def: { type: string } }; jsonSchema: object }): void {
  if (zodSchema.def.type === 'date') Object.assign(jsonSchema, { type: 'string', format: DATE_OBJECT })
}

/** A walk over one schema. */
class Walk {
  readonly #root: JsonSchema
  /** Whether the schema's defaults are filled in here, because nothing else does. */
  readonly #filled: boolean
  #fields = 0
  #schemas = 0

  constructor(root: JsonSchema, filled: boolean) {
    this.#root = root
    this.#filled = filled
  }

  field(given: unknown = this.#root, path: readonly string[] = [], optional = false, within: readonly unknown[] = []): Field {
    if (path.length > DEPTH) this.#refuse(path.slice(0, 3), `more than ${DEPTH} objects within each other`, `at most ${DEPTH}`)
    const { schema, seen } = this.#resolve(given, path, within)
    const { options, nullable } = this.#options(schema, path, seen)
    const said = [schema, ...options.map(({ schema }) => schema)].find(({ description }) => typeof description === 'string')
    const fallback = this.#filled ? schema['default'] : undefined
    const common = { path, optional: optional || fallback !== undefined, nullable, ...(fallback === undefined ? {} : { fallback }) }
    const [only] = options
    if (options.length === 1 && only && isGroup(only.schema)) {
      return { ...common, members: this.#members(only.schema, path, only.seen) }
    }
    this.#fields += 1
    if (this.#fields > FIELDS) this.#refuse(path, `more than ${FIELDS} fields`, `at most ${FIELDS}`)
    const description = said?.['description']
    if (description === undefined && path.length === 0) {
      throw new InvalidOptionError('schema is one value and has no description; allowed: an object, or a description to ask with')
    }
    const prompt = typeof description === 'string' ? description : `${path.join(' ')}:`
    return { ...common, prompt, kinds: options.map(({ schema, seen }) => this.#kind(schema, path, seen)) }
  }

  #members(schema: JsonSchema, path: readonly string[], seen: readonly unknown[]): Group['members'] {
    const open = ['additionalProperties', 'patternProperties', 'propertyNames'].find((keyword) => isJsonSchema(schema[keyword]))
    if (open !== undefined && !('properties' in schema)) this.#refuse(path, `an object with '${open}' only`, 'objects that name their fields')
    const required = Array.isArray(schema['required']) ? schema['required'] : []
    const members = Object.entries(isJsonSchema(schema['properties']) ? schema['properties'] : {})
    return members.map(([name, member]) => [name, this.field(member, [...path, name], !required.includes(name), seen)])
  }

  /** The alternatives of a schema, null aside. */
  #options(schema: JsonSchema, path: readonly string[], seen: readonly unknown[]) {
    const { anyOf, oneOf, ...beside } = schema
    const { type, enum: values } = schema
    const union = anyOf ?? oneOf
    let options = [{ schema, seen }]
    let nullable = schema['nullable'] === true || (Array.isArray(values) && values.includes(null))
    if (Array.isArray(union)) {
      // What stands beside a choice holds for whatever is chosen.
      options = union.map((option) => {
        const chosen = this.#resolve(option, path, seen)
        return { schema: merged(chosen.schema, beside), seen: chosen.seen }
      })
    } else if (Array.isArray(type)) {
      options = type.map((type) => ({ schema: { ...schema, type }, seen }))
    }
    const isNull = ({ type, const: only, enum: values }: JsonSchema): boolean =>
      type === 'null' || only === null || (Array.isArray(values) && values.every((value) => value === null))
    const some = options.filter(({ schema }) => !isNull(schema))
    nullable ||= some.length < options.length
    if (some.length === 0) this.#refuse(path, 'only null', 'something to ask for')
    return { options: some, nullable }
  }

  #kind(schema: JsonSchema, path: readonly string[], seen: readonly unknown[]): Kind {
    const { type, format, enum: values } = schema
    if (Array.isArray(values)) return { type: 'enum', values: values.filter((value) => value !== null) }
    if ('const' in schema) return { type: 'enum', values: [schema['const']] }
    if (format === DATE_OBJECT) return { type: 'date' }
    if (type === 'array') {
      if ('prefixItems' in schema) this.#refuse(path, "'prefixItems'", 'a list of single values of one kind')
      const items = this.field(schema['items'] ?? {}, [...path, '[]'], false, seen)
      if (!isLeaf(items) || items.kinds.some(({ type }) => type === 'array')) {
        this.#refuse(path, 'a list of objects or lists', 'a list of single values')
      }
      return { type, items: items.kinds }
    }
    if (type === 'number' || type === 'integer' || type === 'boolean') return { type }
    const other = type ?? ['properties', 'not', 'if', 'anyOf', 'oneOf'].find((keyword) => keyword in schema) ?? 'string'
    if (other !== 'string') this.#refuse(path, `'${String(other)}'`, 'objects, single values, lists of them and a choice between those')
    return { type: 'string' }
  }

  /** The schema behind references, with all that it must be as well. */
  #resolve(given: unknown, path: readonly string[], within: readonly unknown[]): { schema: JsonSchema; seen: readonly unknown[] } {
    let schema = given === true ? {} : given
    const seen = [...within]
    for (;;) {
      this.#schemas += 1
      if (this.#schemas > SCHEMAS) this.#refuse(path, `more than ${SCHEMAS} schemas on the way`, `at most ${SCHEMAS}`)
      if (!isJsonSchema(schema)) this.#refuse(path, String(schema), 'a schema')
      if (seen.includes(schema)) this.#refuse(path, 'itself again', 'fields that end')
      seen.push(schema)
      const { $ref, ...beside } = schema
      if ($ref === undefined) return { schema: this.#whole(schema, path, seen), seen }
      const target = typeof $ref === 'string' ? this.#at($ref) : undefined
      if (!isJsonSchema(target)) this.#refuse(path, `a reference to '${String($ref)}'`, 'references into the schema itself')
      if (seen.includes(target)) this.#refuse(path, 'itself again', 'fields that end')
      seen.push(target)
      schema = { ...target, ...beside }
    }
  }

  #whole({ allOf, ...own }: JsonSchema, path: readonly string[], seen: readonly unknown[]): JsonSchema {
    const parts: unknown[] = Array.isArray(allOf) ? allOf : []
    return parts.reduce<JsonSchema>((whole, part) => merged(whole, this.#resolve(part, path, seen).schema), own)
  }

  /** What a reference such as `#/$defs/area` names. */
  #at(reference: string): unknown {
    const [, pointer] = /^#(|\/.*)$/.exec(reference) ?? []
    if (pointer === undefined || !isEncoded(pointer)) return undefined
    return pointer.split('/').slice(1).reduce<unknown>((at, step) => {
      const key = decodeURIComponent(step).replaceAll('~1', '/').replaceAll('~0', '~')
      return typeof at === 'object' && at !== null && Object.hasOwn(at, key) ? (at as JsonSchema)[key] : undefined
    }, this.#root)
  }

  #refuse(path: readonly string[], found: string, allowed: string): never {
    throw new InvalidOptionError(`schema has ${found} at '${nameOf(path)}'; allowed: ${allowed}`)
  }
}

/** The keywords of both, to ask by; the check knows them apart. Of one that both have the first's holds, but properties add up. */
function merged(first: JsonSchema, second: JsonSchema): JsonSchema {
  const both = { ...second, ...first }
  const [a, b] = [first['properties'], second['properties']]
  const properties = isJsonSchema(a) && isJsonSchema(b) ? { properties: together(a, b) } : {}
  const [own, more] = [first['required'], second['required']]
  const required = Array.isArray(own) && Array.isArray(more) ? { required: [...own, ...more] } : {}
  return { ...both, ...properties, ...required }
}

/** Fields of both; one that both have must be what both say. */
function together(first: JsonSchema, second: JsonSchema): JsonSchema {
  const twice = Object.entries(second).map(([name, field]) => [name, Object.hasOwn(first, name) ? { allOf: [first[name], field] } : field])
  return Object.fromEntries([...Object.entries(first), ...twice]) as JsonSchema
}

/** Whether a pointer's escapes can be read. */
function isEncoded(pointer: string): boolean {
  try {
    decodeURIComponent(pointer)
    return true
  } catch {
    return false
  }
}

function isGroup({ type, properties }: JsonSchema): boolean {
  return type === 'object' || (type === undefined && isJsonSchema(properties))
}
