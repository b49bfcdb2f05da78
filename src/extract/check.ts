/** What a schema says of a value that was built from answers. */

import { runInNewContext } from 'node:vm'

import type { Ajv2020, ErrorObject, ValidateFunction } from 'ajv/dist/2020.js'

import { InvalidOptionError } from '../errors.js'
import { isStandard, type Checked, type Issue, type JsonSchema, type StandardSchema } from '../schema.js'
import { dateOf } from './dates.js'

/** Gives what the schema makes of a value, or what is wrong with it. */
export type Check = (value: unknown) => Promise<Checked<unknown>>

/** Milliseconds that a JSON Schema may take to check a value: some patterns would take for ever. */
const LIMIT = 1000

const TIME = /^([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)?(Z|[-+]\d\d:\d\d)?$/i

/** Formats that are checked; any other is a remark. */
const FORMATS: Readonly<Record<string, (text: string) => boolean>> = {
  date: (text) => text.length === 10 && dateOf(text) !== undefined,
  'date-time': (text) => /T.*(Z|[-+]\d\d:\d\d)$/i.test(text) && dateOf(text) !== undefined,
  time: (text) => TIME.test(text)
}

/**
 * The check of a schema: its own, where it brings one.
 *
 * @throws {InvalidOptionError} when it is no JSON Schema
 */
export async function checkOf(schema: StandardSchema | JsonSchema): Promise<Check> {
  if (isStandard(schema)) return async (value) => schema['~standard'].validate(value)
  const validate = await compiled(schema)
  return async (value) => {
    if (within(() => validate(value))) return { value }
    return { issues: (validate.errors ?? []).map(issueOf) }
  }
}

async function compiled(schema: JsonSchema): Promise<ValidateFunction> {
  const { Ajv2020 } = await import('ajv/dist/2020.js')
  // 0.3 is a multiple of 0.1, whatever binary fractions say. Which draft it was written for is not asked.
  const ajv: Ajv2020 = new Ajv2020({ allErrors: true, strict: false, logger: false, formats: FORMATS, multipleOfPrecision: 9, code: { optimize: false } })
  const { $schema: _draft, ...keywords } = schema
  try {
    return ajv.compile(keywords)
  } catch (cause) {
    throw new InvalidOptionError('schema is no JSON Schema', { cause })
  }
}

/** Does the work, but not for longer than `LIMIT`: a context of its own is what can be stopped within a pattern. */
function within<T>(work: () => T): T {
  try {
    return runInNewContext('work()', { work }, { timeout: LIMIT }) as T
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error
    throw new InvalidOptionError(`schema takes more than ${LIMIT} ms to check a value; allowed: patterns that come to an end`)
  }
}

function issueOf({ instancePath, message }: ErrorObject): Issue {
  const steps = instancePath.split('/').slice(1)
  return { path: steps.map((step) => step.replaceAll('~1', '/').replaceAll('~0', '~')), message: message ?? 'the schema refuses it' }
}
