/** Documents: read once, asked many times. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import {
  AbortedError,
  ContextOverflowError,
  DisposedError,
  InvalidOptionError,
  load,
  OutOfMemoryError
} from '../esm/index.js'
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

test('thirty slots of every recorded dialogue are answered as recorded', async (t) => {
  t.is(golden.length, 20)
  for (const { context, source, prompts, answers, texts } of golden) {
    const document = await model.read(context)
    t.is(document.tokens, source.length)
    const results = await document.ask(prompts, { maxTokens: 16 }).result
    t.deepEqual(results.map(({ text }) => text), texts)
    t.deepEqual(results.map(({ tokens }) => tokens), answers)
    await document.dispose()
  }
})

test('chunks say whose they are and add up to the results', async (t) => {
  const document = await model.read(DIALOGUE)
  const answers = document.ask(SLOTS)
  const texts = SLOTS.map(() => '')
  const tokens = SLOTS.map(() => [])
  for await (const chunk of answers) {
    texts[chunk.prompt] += chunk.text
    tokens[chunk.prompt].push(...chunk.tokens.map(({ id }) => id))
  }
  const results = await answers.result
  t.deepEqual(texts, VALUES)
  t.deepEqual(results.map(({ text }) => text), VALUES)
  t.deepEqual(results.map((result) => result.tokens), tokens)
  t.true(results.every(({ finishReason }) => finishReason === 'stop'))
  t.deepEqual(await document.ask(SLOTS).texts(), VALUES)
})

test('an answer in company is the answer alone, drawn or not, in any order', async (t) => {
  for (const source of [DIALOGUES, TINY]) {
    const other = await load(source)
    t.teardown(() => other.dispose())
    const document = await other.read(DIALOGUE.slice(0, 120))
    const prompts = ['', ' hotel', ...SLOTS.slice(0, 6), ' a much longer prompt than all the others, with many more tokens']
    for (const options of [{ maxTokens: 12 }, { maxTokens: 12, temperature: 1.2, seed: 9 }]) {
      const said = async (list) => (await document.ask(list, options).result).map(({ tokens }) => tokens)
      const together = await said(prompts)
      for (const [at, prompt] of prompts.entries()) t.deepEqual(await said([prompt]), [together[at]])
      t.deepEqual((await said(prompts.toReversed())).toReversed(), together)
    }
  }
})

test('drafts change no slot, and no answer depends on whose drafts share its step', async (t) => {
  const drafting = await load(DIALOGUES, { draft: { layers: 1 } })
  t.teardown(() => drafting.dispose())
  for (const { context, texts } of golden.slice(0, 3)) {
    const document = await drafting.read(context)
    for (const decoding of ['lookahead', 'speculative', { type: 'jacobi' }]) {
      const results = await document.ask(SLOTS, { decoding, maxTokens: 16 }).result
      t.deepEqual(results.map(({ text }) => text), texts)
      t.true(results.some(({ stats }) => stats.draftedTokens > 0))
    }
    const bild = { decoding: { type: 'bild', fallback: 0.4, rollback: 4 }, maxTokens: 16 }
    const together = await document.ask(SLOTS, bild).texts()
    const alone = []
    for (const slot of SLOTS) alone.push(...(await document.ask([slot], bild).texts()))
    t.deepEqual(together, alone)
  }
})

test('the encoder runs once, and not at all for a text that is still there', async (t) => {
  const text = `${DIALOGUE} thank you .`
  const forwards = async (document) =>
    (await document.ask(SLOTS.slice(0, 3)).result).map(({ stats }) => stats.encoderForwards)
  const first = await model.read(text)
  t.is(first.encoderForwards, 1)
  t.deepEqual(await forwards(first), [1, 0, 0])
  t.deepEqual(await forwards(first), [0, 0, 0])
  await first.dispose()
  const again = await model.read(text)
  t.is(again.encoderForwards, 0)
  t.deepEqual(await forwards(again), [0, 0, 0])

  const forgetful = await load(DIALOGUES, { documentCache: 0 })
  t.teardown(() => forgetful.dispose())
  for (let round = 0; round < 2; round += 1) {
    const document = await forgetful.read(text)
    t.is(document.encoderForwards, 1)
    await document.dispose()
  }
})

test('limits and stop strings hold for each answer', async (t) => {
  const document = await model.read(DIALOGUE)
  const short = await document.ask(SLOTS, { maxTokens: 1 }).result
  t.true(short.every(({ tokens }) => tokens.length === 1))
  const at = VALUES.indexOf('expensive')
  const stopped = await document.ask(SLOTS, { stop: 'pensive' }).result
  t.deepEqual(stopped.map(({ text }) => text), VALUES.with(at, 'ex'))
})

test('several documents and generations share the model', async (t) => {
  const documents = await Promise.all(golden.slice(0, 5).map(({ context }) => model.read(context)))
  const all = await Promise.all(documents.map((document) => document.ask(SLOTS).texts()))
  t.deepEqual(all, golden.slice(0, 5).map(({ texts }) => texts))
})

test('ten thousand prompts are answered in their order', async (t) => {
  const document = await model.read(DIALOGUE)
  const prompts = Array.from({ length: 10_000 }, (_, at) => SLOTS[at % 30])
  const texts = await document.ask(prompts).texts()
  t.true(texts.length === 10_000 && texts.every((text, at) => text === VALUES[at % 30]))
})

test('a reader may ask the model again while it reads, however little cache there is', async (t) => {
  const small = await load(TINY, { contextLength: 96 })
  t.teardown(() => small.dispose())
  const document = await small.read('The harbour wakes')
  let inner
  for await (const _ of document.ask(Array.from({ length: 40 }, () => ' and'), { maxTokens: 60 })) {
    inner ??= await small.generate('Boats', { maxTokens: 80 }).text()
  }
  t.is(typeof inner, 'string')
})

test('break and abort end all answers', async (t) => {
  const document = await model.read(DIALOGUE)
  const long = { maxTokens: 4000, temperature: 5, seed: 1 }
  const left = document.ask(SLOTS, long)
  for await (const _ of left) break
  const results = await left.result
  t.is(results.length, 30)
  t.true(results.some(({ finishReason }) => finishReason === 'abort'))

  const controller = new AbortController()
  const aborted = document.ask(SLOTS, { ...long, signal: controller.signal })
  await t.throwsAsync(
    async () => {
      for await (const _ of aborted) controller.abort()
    },
    { instanceOf: AbortedError }
  )
  await t.throwsAsync(aborted.texts(), { instanceOf: AbortedError })
  t.is((await aborted.result).length, 30)
  await t.throwsAsync(model.read(DIALOGUE, { signal: AbortSignal.abort() }), { instanceOf: AbortedError })
})

test('what cannot be read or asked is a typed error', async (t) => {
  const refused = (list, options) => model.read(DIALOGUE).then((document) => document.ask(list, options).result)
  for (const [list, options, message] of [
    ['hotel area:', {}, /prompts is 'hotel area:'; allowed: a list of strings/],
    [['hotel area:', 7], {}, /prompts\[1\] is 7/],
    [Array.from({ length: 100_000 }, () => ''), {}, /100000.*65536/],
    [SLOTS, { maxTokens: -1 }, /options.maxTokens is -1/],
    [SLOTS, { slots: 3 }, /unknown option 'slots'/]
  ]) {
    await t.throwsAsync(refused(list, options), { instanceOf: InvalidOptionError, message })
  }
  t.deepEqual(await refused([], {}), [])
  await t.throwsAsync(model.read(7), { instanceOf: InvalidOptionError, message: /document is 7/ })
  await t.throwsAsync(model.read('a', { deep: true }), { instanceOf: InvalidOptionError, message: /'deep'/ })
  await t.throwsAsync(model.read('hotel '.repeat(50_000)), { instanceOf: ContextOverflowError, message: /8192/ })
  await t.throwsAsync(refused(['', 'hotel '.repeat(50_000)]), { instanceOf: ContextOverflowError })
  const { message } = await t.throwsAsync(load(DIALOGUES, { memoryLimit: 1000 }), { instanceOf: OutOfMemoryError })
  const least = Number(/needs (\d+) bytes/.exec(message)[1])
  const tight = await load(DIALOGUES, { memoryLimit: least, contextLength: 256 })
  t.teardown(() => tight.dispose())
  t.deepEqual(await (await tight.read(DIALOGUE)).ask(SLOTS).texts(), VALUES)
  // A dozen documents in use fill what little memory is left; giving one up makes room again.
  const held = []
  const reading = async () => {
    for (let at = 0; at < 1000; at += 1) held.push(await tight.read(`${at} ${DIALOGUE}`))
  }
  await t.throwsAsync(reading, { instanceOf: OutOfMemoryError, message: /bytes/ })
  const roomy = await model.read(`0 ${DIALOGUE}`)
  t.deepEqual(await held[0].ask(SLOTS).texts(), await roomy.ask(SLOTS).texts())
  await held.pop().dispose()
  t.true((await tight.read(`again ${DIALOGUE}`)).tokens > 0)
})

test('a disposed document or model answers nothing more', async (t) => {
  const document = await model.read(DIALOGUE)
  const running = document.ask(SLOTS)
  await document.dispose()
  t.deepEqual(await running.texts(), VALUES)
  await t.throwsAsync(document.ask(SLOTS).result, { instanceOf: DisposedError })
  const other = await load(DIALOGUES)
  const orphan = await other.read(DIALOGUE)
  await other.dispose()
  await t.throwsAsync(orphan.ask(SLOTS).result, { instanceOf: DisposedError })
  await t.throwsAsync(other.read(DIALOGUE), { instanceOf: DisposedError })
})

test('many who ask a document at once by a draft model share its cache', async (t) => {
  const tiny = await load(TINY, { contextLength: 256, draft: { layers: 1 } })
  t.teardown(() => tiny.dispose())
  const document = await tiny.read('the clover has three leaves and one stem. '.repeat(6).slice(0, 200))
  const prompts = Array.from({ length: 12 }, (_, at) => `q${at}`)
  const ask = (decoding) => document.ask(prompts, { maxTokens: 40, decoding }).texts()
  const plain = await ask('plain')
  const speculative = { type: 'speculative', fallback: 0 }
  for (const texts of await Promise.all([1, 2, 3].map(() => ask(speculative)))) t.deepEqual(texts, plain)
})

test('a step may keep as many tokens as it has rows', async (t) => {
  const { url } = import.meta
  const model = await load(fileURLToPath(new URL('../fixtures/llama-spm-gguf/model.gguf', url)), { contextLength: 160 })
  t.teardown(() => model.dispose())
  const document = await model.read('one leaf')
  const prompts = Array.from({ length: 8 }, (_, at) => ' and a leaf'.repeat(at))
  const ask = (decoding) => document.ask(prompts, { decoding }).texts()
  const plain = await ask('plain')
  const wide = { type: 'lookahead', window: 0, ngram: 2, guesses: 120 }
  for (const texts of await Promise.all([1, 2, 3].map(() => ask(wide)))) t.deepEqual(texts, plain)
})

test('what texts take beside the cache is counted before it is taken', async (t) => {
  const source = 'user: i need a cheap hotel in the north . '.repeat(12)
  const { message } = await t.throwsAsync(load(DIALOGUES, { memoryLimit: 1000, contextLength: 256 }), { instanceOf: OutOfMemoryError })
  const least = Number(/needs (\d+) bytes/.exec(message)[1])
  const tight = await load(DIALOGUES, { memoryLimit: least, contextLength: 256 })
  t.teardown(() => tight.dispose())
  // One encoding fits at a time; the others wait.
  const options = { maxTokens: 8, decoding: 'plain' }
  const texts = await Promise.all(Array.from({ length: 8 }, () => tight.generate(source, options).text()))
  t.is(new Set(texts).size, 1)
  const document = await tight.read(source)
  const refused = { instanceOf: OutOfMemoryError, message: /steps of 1 rows needs \d+ bytes; documents and texts in use have \d+ of the \d+/ }
  await t.throwsAsync(tight.generate(`${source}!`, options).text(), refused)
  await document.dispose()
  t.is(await tight.generate(source, options).text(), texts[0])
  const rows = { instanceOf: OutOfMemoryError, message: /steps of 1001 rows needs/ }
  await t.throwsAsync(tight.generate('north', { decoding: { type: 'jacobi', block: 1000 } }).text(), rows)
})

test('a reading that waits behind another is aborted at once', async (t) => {
  const tiny = await load(TINY, { contextLength: 2048, threads: 1 })
  t.teardown(() => tiny.dispose())
  // They fill the cache, so that a document has to wait for one of them.
  const options = { decoding: 'plain', temperature: 1, seed: 1 }
  const writing = Array.from({ length: 4 }, () => tiny.generate('the clover', options))
  for (const generation of writing) generation.result.catch(() => {})
  const [first, second] = [new AbortController(), new AbortController()]
  const text = 'three leaves '.repeat(400)
  const ahead = tiny.read(text, { signal: first.signal })
  const behind = tiny.read(`${text}!`, { signal: second.signal })
  second.abort()
  await t.throwsAsync(behind, { instanceOf: AbortedError })
  const still = Symbol('still waiting')
  t.is(await Promise.race([ahead.then(() => 'read', () => 'failed'), Promise.resolve(still)]), still)
  first.abort()
  await t.throwsAsync(ahead, { instanceOf: AbortedError })
})

test('a thousand calls may wait', async (t) => {
  const tiny = await load(TINY, { contextLength: 1024, threads: 1 })
  t.teardown(() => tiny.dispose())
  const busy = tiny.generate('the clover has three leaves '.repeat(60), { maxTokens: 20 }).result
  const texts = await Promise.all(Array.from({ length: 1000 }, () => tiny.generate('hi', { maxTokens: 1 }).text()))
  t.is(new Set(texts).size, 1)
  await busy
})
