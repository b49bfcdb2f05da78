/** Schemas that a caller may bring: any library's that implements Standard Schema, or JSON Schema as it is. */

/** A schema of any library that implements Standard Schema, and Standard JSON Schema with it. */
export interface StandardSchema<Input = unknown, Output = Input> {
  readonly '~standard': {
    readonly version: 1
    readonly vendor: string
    readonly validate: (value: unknown) => Checked<Output> | Promise<Checked<Output>>
    readonly types?: { readonly input: Input; readonly output: Output } | undefined
    readonly jsonSchema?: {
      readonly input: (options: { target: 'draft-2020-12'; libraryOptions?: Record<string, unknown> }) => JsonSchema
    }
  }
}

/** What a validation says. */
export type Checked<Output> =
  | { readonly value: Output; readonly issues?: undefined }
  | { readonly issues: readonly Issue[] }

/** One thing that is wrong with a value, and where. */
export interface Issue {
  readonly message: string
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined
}

/** A JSON Schema, draft 2020-12. */
export type JsonSchema = { readonly [keyword: string]: unknown }

/** The type of the values that a schema lets through; a JSON Schema as it is names none. */
export type Infer<S> = S extends StandardSchema ? NonNullable<S['~standard']['types']>['output'] : unknown

/** Whether `schema` brings its own validation. */
export function isStandard(schema: unknown): schema is StandardSchema {
  // Some libraries' schemas are functions.
  if (schema === null || (typeof schema !== 'object' && typeof schema !== 'function')) return false
  return '~standard' in schema && isJsonSchema(schema['~standard'])
}

/** Whether `value` can be read as keywords. */
export function isJsonSchema(value: unknown): value is JsonSchema {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
