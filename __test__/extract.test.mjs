/** Values for a schema out of a document. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { z } from 'zod'
import { AbortedError, ExtractionError, InvalidOptionError, load, TrefoilError } from '../esm/index.js'
import { extractFrom } from '../esm/extract.js'
import { DIALOGUES, TINY } from './support/models.mjs'

const golden = (await readFile(join(DIALOGUES, 'golden.jsonl'), 'utf8'))
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line))
const { context: DIALOGUE, prompts: SLOTS, texts: VALUES } = golden[0]

let model
test.before(async () => {
  model = await load(DIALOGUES)
})
test.after.always(() => model?.dispose())

/** Extracts from a document whose answers are given by prompt; an answer may be a list of `[token text, logprob]`. */
function extract(schema, said, options) {
  const asked = { prompts: undefined, options: undefined }
  const ask = (prompts, options) => {
    Object.assign(asked, { prompts, options })
    const texts = prompts.map((prompt) => said[prompt])
    return {
      async *[Symbol.asyncIterator]() {
        for (const [prompt, text] of texts.entries()) {
          for (const [, logprob] of [text].flat().filter(Array.isArray)) yield { prompt, tokens: [{ id: 1, logprob }] }
        }
      },
      texts: async () => texts.map((text) => (Array.isArray(text) ? text.map(([piece]) => piece).join('') : text))
    }
  }
  return extractFrom(ask, '', schema, options).then((value) => ({ value, asked }))
}

const property = (schema, text) => extract({ type: 'object', properties: { x: schema }, required: ['x'] }, { 'x:': text })

test('a schema of slots gives what asking the slots gives', async (t) => {
  const schema = z.object(Object.fromEntries(SLOTS.map((slot) => [slot, z.string().describe(slot)])))
  for (const { context, prompts, texts } of golden) {
    const document = await model.read(context)
    t.deepEqual(await document.extract(schema), Object.fromEntries(prompts.map((slot, at) => [slot, texts[at]])))
    await document.dispose()
  }
})

test('nested fields, enumerations and optional ones come out of a dialogue', async (t) => {
  t.is(VALUES[SLOTS.indexOf('restaurant pricerange:')], 'expensive')
  const Restaurant = z.object({
    pricerange: z.enum(['cheap', 'moderate', 'expensive']),
    food: z.string().optional(),
    people: z.coerce.number().optional().describe('restaurant book people:')
  })
  const schema = z.object({ restaurant: Restaurant, train: z.object({ day: z.string(), leaveat: z.string() }).optional() })
  const document = await model.read(DIALOGUE)
  const answer = (slot) => VALUES[SLOTS.indexOf(slot)]
  const expected = { restaurant: { pricerange: 'expensive' } }
  for (const [name, slot] of [['food', 'restaurant food:'], ['people', 'restaurant book people:']]) {
    if (answer(slot) !== 'none') expected.restaurant[name] = name === 'people' ? Number(answer(slot)) : answer(slot)
  }
  t.deepEqual([answer('train day:'), answer('train leaveat:')], ['none', 'none'])
  t.deepEqual(await document.extract(schema), expected)

  const { value, confidence } = await document.extract(schema, { confidence: true })
  t.deepEqual(value, expected)
  const paths = ['restaurant.pricerange', 'restaurant.food', 'restaurant.people', 'train.day', 'train.leaveat']
  t.deepEqual(Object.keys(confidence), paths)
  t.true(Object.values(confidence).every((p) => p > 0 && p <= 1))
  const price = z.object({ restaurant: z.object({ pricerange: z.string() }) })
  const sure = await document.extract(price, { confidence: true })
  const logprobs = []
  for await (const { tokens } of document.ask(['restaurant pricerange:'], { logprobs: true })) logprobs.push(...tokens.map(({ logprob }) => logprob))
  const mean = logprobs.reduce((sum, logprob) => sum + logprob, 0) / logprobs.length
  t.deepEqual(sure, { value: { restaurant: { pricerange: 'expensive' } }, confidence: { 'restaurant.pricerange': Math.exp(mean) } })

  const wrong = z.object({ restaurant: z.object({ pricerange: z.enum(['cheap', 'moderate']) }) })
  const error = await t.throwsAsync(document.extract(wrong), { instanceOf: ExtractionError, message: /'restaurant.pricerange'.*'cheap'/ })
  t.true(error instanceof TrefoilError && ExtractionError.isInstance(error))
  t.like(error, { code: 'EXTRACTION', field: 'restaurant.pricerange', text: 'expensive' })
})

test('a model without an encoder is asked on a line of its own', async (t) => {
  const tiny = await load(TINY)
  t.teardown(() => tiny.dispose())
  const document = await tiny.read('The harbour wakes before the town does.')
  const options = { maxTokens: 6, temperature: 1.1, seed: 4 }
  const [text] = await document.ask(['\nboats:'], { ...options, stop: '\n' }).texts()
  t.deepEqual(await document.extract(z.object({ boats: z.string() }), options), { boats: text.trim() })
})

test('every type is read from text', async (t) => {
  const cases = [
    [{ type: 'string' }, '  two words ', 'two words'],
    [{ type: 'string' }, 'none', 'none'],
    [{ type: 'number' }, '-1,234.5', -1234.5],
    [{ type: 'number' }, '.5', 0.5],
    [{ type: 'integer' }, ' 42 ', 42],
    [{ type: 'boolean' }, 'Yes', true],
    [{ type: 'boolean' }, 'false', false],
    [{ enum: ['north', 'South'] }, 'south', 'South'],
    [{ enum: ['a', 'A'] }, 'A', 'A'],
    [{ enum: [1, 2] }, '2', 2],
    [{ enum: ['none', 'some'] }, 'None', 'none'],
    [{ const: 'x' }, 'X', 'x'],
    [{ anyOf: [{ const: 'a' }, { const: 2 }] }, '2', 2],
    [{ anyOf: [{ type: 'integer' }, { type: 'string' }] }, '12', 12],
    [{ anyOf: [{ type: 'integer' }, { type: 'string' }] }, 'twelve', 'twelve'],
    [{ anyOf: [{ type: 'integer', maximum: 5 }, { type: 'string' }] }, '12', '12'],
    [{ type: 'number', anyOf: [{ minimum: 3 }, { maximum: 1 }] }, '4', 4],
    [{ allOf: [{ type: 'integer' }, { maximum: 5 }] }, '4', 4],
    [{ type: ['integer', 'null'] }, 'none', null],
    [{ enum: ['a', null] }, 'none', null],
    [{ enum: ['a', null] }, 'A', 'a'],
    [{ anyOf: [{ type: 'string' }, { type: 'null' }] }, '', null],
    [{ type: 'string', format: 'date' }, '2024-02-29', '2024-02-29'],
    [{ type: 'string', format: 'date-time' }, '2026-05-01T10:00:00Z', '2026-05-01T10:00:00Z'],
    [{ type: 'array', items: { type: 'integer' } }, '1, 2;3', [1, 2, 3]],
    [{ type: 'array', items: { enum: ['a', 'b'] } }, '["a", "B"]', ['a', 'b']],
    [{ type: 'array', items: { type: 'string' } }, 'none', []],
    [{}, 'anything', 'anything'],
    [true, 'anything', 'anything'],
    [{ default: 7, type: 'integer' }, 'none', 7]
  ]
  for (const [schema, text, value] of cases) {
    t.deepEqual((await property(schema, text)).value, { x: value }, `${JSON.stringify(schema)} of '${text}'`)
  }
})

test('text that is no value of its field is refused with field and text', async (t) => {
  const cases = [
    [{ type: 'string' }, ' ', /some text/],
    [{ type: 'number' }, 'three', /a number/],
    [{ type: 'number' }, '1,23', /a number/],
    [{ type: 'number' }, '', /a number/],
    [{ type: 'number' }, 'e5', /a number/],
    [{ type: 'number' }, 'Infinity', /a number/],
    [{ type: 'integer' }, '1.5', /whole number/],
    [{ type: 'boolean' }, 'maybe', /yes or no/],
    [{ enum: ['a', 2] }, 'c', /one of 'a', '2'/],
    [{ type: 'string', format: 'date' }, '2026-02-30', /format "date"/],
    [{ type: 'string', format: 'time' }, '25:00', /format "time"/],
    [{ type: 'string', pattern: '^a+$' }, 'ab', /\^a\+\$/],
    [{ type: 'string', maxLength: 2 }, '🍀🍀🍀', /more than 2 characters/],
    [{ type: 'number', minimum: 3 }, '2', />= 3/],
    [{ type: 'number', exclusiveMaximum: 3 }, '3', /< 3/],
    [{ type: 'number', exclusiveMinimum: 3 }, '3', /> 3/],
    [{ type: 'number', multipleOf: 0.1 }, '0.35', /multiple of 0.1/],
    [{ type: 'array', items: { type: 'integer' }, minItems: 2 }, '1', /fewer than 2 items/],
    [{ type: 'array', items: { type: 'integer' }, uniqueItems: true }, '1,1', /duplicate items/],
    [{ type: 'array', items: { type: 'integer' } }, '1, two', /a number/],
    [{ type: 'boolean' }, 'constructor', /yes or no/],
    [{ type: 'boolean' }, '__proto__', /yes or no/],
    [{ anyOf: [{ const: 'a' }, { const: 'b' }] }, 'c', /'a' or expected 'b'/],
    [{ enum: Array.from({ length: 100_000 }, (_, at) => `v${at}`) }, 'x', /'v9' and 99990 more$/],
    [{ anyOf: [{ type: 'integer' }, { type: 'null' }], maximum: 5 }, '9', /<= 5/],
    [{ type: 'number', anyOf: [{ minimum: 3 }, { maximum: 1 }] }, '2', />= 3/],
    [{ type: 'string', allOf: [{ maxLength: 2 }] }, 'abcdef', /more than 2 characters/],
    [{ type: 'string', not: { const: 'no' } }, 'no', /NOT be valid/],
    [{ type: 'array', items: { type: 'integer' }, contains: { const: 7 } }, '1, 2', /must be equal to constant/]
  ]
  for (const [schema, text, message] of cases) {
    const error = await t.throwsAsync(property(schema, text), { instanceOf: ExtractionError, message }, JSON.stringify(schema))
    t.like(error, { field: 'x', text })
  }
  const { value } = await property({ type: 'number', multipleOf: 0.1 }, '0.3')
  t.deepEqual(value, { x: 0.3 })
})

test('an object that may be left out is, where none of its fields has an answer', async (t) => {
  const schema = {
    $defs: { place: { type: 'object', properties: { area: { type: 'string' }, stars: { type: 'integer' } }, required: ['area', 'stars'] } },
    type: 'object',
    properties: { hotel: { $ref: '#/$defs/place' }, other: { anyOf: [{ $ref: '#/$defs/place' }, { type: 'null' }] } },
    required: ['other']
  }
  const said = { 'hotel area:': 'none', 'hotel stars:': '', 'other area:': 'north', 'other stars:': '3' }
  const { value, asked } = await extract(schema, said)
  t.deepEqual(value, { other: { area: 'north', stars: 3 } })
  t.deepEqual(asked.prompts, Object.keys(said))
  t.deepEqual(asked.options, { maxTokens: 64, stop: '\n' })
  const neither = { ...said, 'other area:': 'none', 'other stars:': 'none' }
  t.deepEqual((await extract(schema, neither)).value, { other: null })
  const half = extract(schema, { ...said, 'hotel area:': 'south' })
  t.like(await t.throwsAsync(half, { instanceOf: ExtractionError }), { field: 'hotel.stars', text: '' })
})

test('parts of a schema add up', async (t) => {
  const schema = {
    $defs: { named: { type: 'object', properties: { name: { type: 'string' } }, required: ['name'] }, either: { anyOf: [{ type: 'integer' }, { type: 'string' }] } },
    type: 'object',
    allOf: [{ $ref: '#/$defs/named' }, { properties: { name: { maxLength: 3 }, count: { $ref: '#/$defs/either/anyOf/0' } } }],
    properties: { parent: { $ref: '#/$defs/named' } },
    dependentRequired: { count: ['parent'] }
  }
  const said = { 'parent name:': 'ann', 'name:': 'bo', 'count:': '2' }
  t.deepEqual((await extract(schema, said)).value, { parent: { name: 'ann' }, name: 'bo', count: 2 })
  const error = (more) => t.throwsAsync(extract(schema, { ...said, ...more }), { instanceOf: ExtractionError })
  t.like(await error({ 'name:': 'robert' }), { field: 'name', text: 'robert' })
  t.like(await error({ 'parent name:': 'none' }), { field: '', text: '' })
})

test('a pattern that does not come to an end is stopped', async (t) => {
  const pattern = '^([\\w ,.]+)+#$'
  const text = 'The capital of France is Paris, a city of two million people.'
  const start = performance.now()
  await t.throwsAsync(property({ type: 'string', pattern }, text), { instanceOf: InvalidOptionError, message: /more than 1000 ms/ })
  t.true(performance.now() - start < 5000)
})

test('an option that is undefined is none', async (t) => {
  const { asked } = await extract(of({ type: 'string' }), { 'x:': 'a' }, { maxTokens: undefined, stop: undefined, confidence: undefined })
  t.deepEqual(asked.options, { maxTokens: 64, stop: '\n' })
  await t.throwsAsync(extract(of({ type: 'string' }), {}, 5), { instanceOf: InvalidOptionError, message: /options is 5/ })
})

test('a confidence is the geometric mean of the probabilities of an answer', async (t) => {
  const schema = { type: 'object', properties: { a: { type: 'string' }, b: { type: 'object', properties: { c: { type: 'string' } } } } }
  const said = { 'a:': [['no', Math.log(0.5)], ['rth', Math.log(0.125)]], 'b c:': '' }
  const { value, asked } = await extract(schema, said, { confidence: true, seed: 3 })
  t.deepEqual(value, { value: { a: 'north' }, confidence: { a: 0.25 } })
  t.deepEqual(asked.options, { maxTokens: 64, stop: '\n', seed: 3, logprobs: true })
})

test('the schema itself turns answers into what it gives', async (t) => {
  const schema = z
    .object({
      day: z.iso.date().transform((day) => new Date(day)),
      at: z.date().optional(),
      until: z.coerce.date(),
      tags: z.array(z.string()).default(['none']),
      stars: z.number().int().max(5)
    })
    .refine(({ stars }) => stars !== 4, { message: 'four is unlucky', path: ['stars'] })
  const said = { 'day:': '2026-05-01', 'at:': '2026-05-02', 'until:': '2026-05-03T10:00:00Z', 'tags:': '', 'stars:': '3' }
  const day = (text) => new Date(text)
  const dates = { day: day('2026-05-01'), at: day('2026-05-02'), until: day('2026-05-03T10:00:00Z') }
  t.deepEqual((await extract(schema, { ...said, 'tags:': 'a, b' })).value, { ...dates, tags: ['a', 'b'], stars: 3 })
  t.deepEqual((await extract(schema, said)).value, { ...dates, tags: ['none'], stars: 3 })
  for (const [stars, message] of [['4', /unlucky/], ['9', /'stars' can't be '9'/]]) {
    const error = await t.throwsAsync(extract(schema, { ...said, 'stars:': stars }), { instanceOf: ExtractionError, message })
    t.like(error, { field: 'stars', text: stars })
  }
  t.like(await t.throwsAsync(extract(schema, { ...said, 'at:': '2026-02-30' })), { field: 'at' })
  t.is((await extract(z.enum(['a', 'b']).describe('which?'), { 'which?': 'B' })).value, 'b')
})

/** An object with one field. */
const of = (schema) => ({ type: 'object', properties: { x: schema } })
const nested = (depth) => Array.from({ length: depth }).reduce(of, { type: 'string' })

/** A few hundred bytes that mean 2^26 schemas. */
function laughs(keyword) {
  const twice = (next) => (keyword === 'allOf' ? { allOf: [next, next] } : { type: 'object', properties: { x: next, y: next } })
  const $defs = Object.fromEntries(Array.from({ length: 26 }, (_, at) => [`a${at}`, twice({ $ref: `#/$defs/a${at + 1}` })]))
  return { $defs: { ...$defs, a26: { type: 'string' } }, ...twice({ $ref: '#/$defs/a0' }) }
}

test('a schema that no prompt can ask for is refused by name', async (t) => {
  const cyclic = { $defs: { node: { type: 'object', properties: { next: { $ref: '#/$defs/node' } } } }, $ref: '#/$defs/node' }
  const bare = { '~standard': { version: 1, vendor: 'bare', validate: (value) => ({ value }) } }
  for (const [schema, message] of [
    [undefined, /schema is no object/],
    [7, /schema is no object/],
    [bare, /'bare'.*Standard JSON Schema/],
    [{ type: 'string' }, /no description/],
    [cyclic, /itself again at 'next'/],
    [{ type: 'object', properties: { x: { $ref: 'https://example.org/x' } } }, /a reference to 'https/],
    [{ type: 'object', properties: { x: { type: 'array', items: { type: 'object' } } } }, /list of objects or lists at 'x'/],
    [of({ not: { type: 'string' } }), /'not' at 'x'/],
    [of({ type: 'string', pattern: '[' }), /no JSON Schema/],
    [of({ type: 'string', minLength: 'two' }), /no JSON Schema/],
    [of({ $ref: '#/$defs/100%' }), /a reference to '#\/\$defs\/100%'/],
    [of({ $ref: '#x' }), /a reference to '#x'/],
    [of({ type: 'object', additionalProperties: { type: 'string' } }), /'additionalProperties' only at 'x'/],
    [of({ type: 'array', prefixItems: [{ type: 'string' }] }), /'prefixItems' at 'x'/],
    [z.object({ x: z.record(z.string(), z.string()) }), /at 'x'/],
    [z.object({ x: z.tuple([z.string(), z.number()]) }), /'prefixItems' at 'x'/],
    [nested(3000), /more than 64 objects within each other/],
    [laughs('properties'), /more than 4096 fields/],
    [laughs('allOf'), /more than 100000 schemas/],
    [{ type: 'object', properties: { x: { type: 'null' } } }, /only null at 'x'/],
    [{ type: 'object', properties: { x: false } }, /false at 'x'/]
  ]) {
    await t.throwsAsync(extract(schema, {}), { instanceOf: InvalidOptionError, message })
  }
  const document = await model.read(DIALOGUE)
  const schema = z.object({ area: z.string() })
  for (const [options, message] of [
    [{ confidence: 1 }, /options.confidence is 1/],
    [{ sure: true }, /unknown option 'sure'/],
    [{ maxTokens: -1 }, /options.maxTokens is -1/]
  ]) {
    await t.throwsAsync(document.extract(schema, options), { instanceOf: InvalidOptionError, message })
  }
  await t.throwsAsync(document.extract(schema, { signal: AbortSignal.abort() }), { instanceOf: AbortedError })
  t.deepEqual(await document.extract(z.object({})), {})
})

test('a field may have any name', async (t) => {
  const names = ['__proto__', 'constructor', '~standard', 'a.b']
  const schema = JSON.parse(`{"type":"object","properties":{${names.map((name) => `"${name}":{"type":"string"}`).join()}}}`)
  const { value } = await extract(schema, Object.fromEntries(names.map((name) => [`${name}:`, 'x'])))
  t.deepEqual(Object.entries(value), names.map((name) => [name, 'x']))
  t.is(Object.getPrototypeOf(value), Object.prototype)
})
