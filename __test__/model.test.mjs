/** Writing with a real model: streaming, cancelling, sharing, disposing. */
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { AbortedError, DisposedError, load, TrefoilError } from '../esm/index.js'
import { LARGE, SMALL } from './support/models.mjs'

const SENTENCE = 'Wir gehen morgen mit den Kindern in den Park.'
/** A text that takes a while: without an end it writes on to its limit. */
const LONG = { maxTokens: 4000, repetitionPenalty: 1, temperature: 5, seed: 7 }

let model
test.before(async () => {
  model = await load(LARGE)
})
test.after.always(() => model?.dispose())

async function stream(generation) {
  const chunks = []
  for await (const chunk of generation) chunks.push(chunk)
  return chunks
}

test('info says what the model is', (t) => {
  const { info } = model
  t.like(info, { architecture: 't5', kind: 'seq2seq', layers: 5, device: 'cpu' })
  t.true(info.parameters > 10e6 && info.parameters < 13e6)
  t.true(info.bytes > 1e7 && info.vocabulary > 1000 && info.contextLength > 100)
  t.throws(() => {
    info.layers = 1
  })
})

test('a stream says what text() and the result say', async (t) => {
  const generation = model.generate(SENTENCE)
  const chunks = await stream(generation)
  const { text, tokens, finishReason, stats } = await generation.result
  t.true(text.length > 10)
  t.is(chunks.map((chunk) => chunk.text).join(''), text)
  t.deepEqual(chunks.flatMap((chunk) => chunk.tokens.map(({ id }) => id)), tokens)
  t.is(finishReason, 'stop')
  t.is(await model.generate(SENTENCE).text(), text)
  t.is(await model.detokenize(tokens), text)

  t.is(stats.tokens, tokens.length)
  t.is(stats.promptTokens, (await model.tokenize(SENTENCE)).length)
  t.true(stats.steps >= tokens.length && stats.steps <= tokens.length + 1)
  t.is(stats.encoderForwards, 1)
  t.is(stats.decoding, 'plain')
  t.true(stats.prefillMs > 0 && stats.decodeMs > 0 && stats.tokensPerSecond > 0)
  for (const key of ['draftForwards', 'draftedTokens', 'acceptedTokens', 'fallbacks', 'rollbacks', 'poolHits', 'poolBytes']) {
    t.is(stats[key], 0)
  }
  t.true(stats.hostMs > 0 && stats.hostMs < stats.decodeMs)
})

test('tokens go there and back', async (t) => {
  const tokens = await model.tokenize('Wo ist der Bahnhof?')
  t.is(tokens.at(-1), 1)
  t.is(await model.detokenize(tokens), 'Wo ist der Bahnhof?')
  t.is(await model.detokenize([]), '')
})

test('maxTokens and stop strings end a text', async (t) => {
  const whole = (await model.generate(SENTENCE).result).text
  const short = await model.generate(SENTENCE, { maxTokens: 3 }).result
  t.is(short.tokens.length, 3)
  t.is(short.finishReason, 'length')
  t.true(whole.startsWith(short.text))
  const none = await model.generate(SENTENCE, { maxTokens: 0 }).result
  t.deepEqual([none.text, none.tokens, none.finishReason], ['', [], 'length'])
  const word = whole.split(' ')[2]
  const stopped = model.generate(SENTENCE, { stop: [word, 'never there'] })
  const streamed = (await stream(stopped)).map((chunk) => chunk.text).join('')
  t.is(streamed, whole.slice(0, whole.indexOf(word)))
  t.is((await stopped.result).finishReason, 'stop')
})

test('the same seed writes the same text, another one another', async (t) => {
  const write = async (seed) => (await model.generate(SENTENCE, { temperature: 1.5, seed, maxTokens: 40 }).result).tokens
  const [a, b, c] = await Promise.all([write(1), write(1), write(2)])
  t.deepEqual(a, b)
  t.notDeepEqual(a, c)
})

test('log-probabilities come when asked for', async (t) => {
  const [asked, without] = await Promise.all([
    stream(model.generate(SENTENCE, { logprobs: true })),
    stream(model.generate(SENTENCE))
  ])
  const logprobs = asked.flatMap((chunk) => chunk.tokens.map(({ logprob }) => logprob))
  t.true(logprobs.length > 0 && logprobs.every((value) => Number.isFinite(value) && value <= 0))
  t.true(without.flatMap((chunk) => chunk.tokens).every((token) => !('logprob' in token)))
})

test('texts written at the same time are those written alone', async (t) => {
  const sentences = ['Wo ist der Bahnhof?', 'Ich habe keine Zeit.', 'Das ist mein Haus.', SENTENCE]
  const together = await Promise.all(sentences.map((sentence) => model.generate(sentence, { maxTokens: 50 }).text()))
  for (const [at, sentence] of sentences.entries()) {
    t.is(await model.generate(sentence, { maxTokens: 50 }).text(), together[at])
  }
})

test('break ends the writing within a step', async (t) => {
  const generation = model.generate(SENTENCE, LONG)
  let seen = 0
  for await (const chunk of generation) {
    seen += chunk.tokens.length
    if (seen >= 5) break
  }
  const { finishReason, tokens } = await generation.result
  t.is(finishReason, 'abort')
  // The engine may be as far ahead as its queue is long.
  t.true(tokens.length >= 5 && tokens.length <= 5 + 18, `${tokens.length} tokens`)
})

test('a signal ends the writing', async (t) => {
  const controller = new AbortController()
  const generation = model.generate(SENTENCE, { ...LONG, signal: controller.signal })
  let text = ''
  await t.throwsAsync(
    async () => {
      for await (const chunk of generation) {
        text += chunk.text
        if (text.length > 20) controller.abort()
      }
    },
    { instanceOf: AbortedError }
  )
  const result = await generation.result
  t.is(result.finishReason, 'abort')
  t.true(result.text.startsWith(text))
  t.true(result.tokens.length < LONG.maxTokens)
})

test('a signal ends a text that only its result waits for', async (t) => {
  const generation = model.generate(SENTENCE, { ...LONG, signal: AbortSignal.timeout(30) })
  const before = performance.now()
  t.is((await generation.result).finishReason, 'abort')
  t.true(performance.now() - before < 2000)
})

test('a timeout of a signal is the cause of the abort', async (t) => {
  const signal = AbortSignal.timeout(20)
  const error = await t.throwsAsync(model.generate(SENTENCE, { ...LONG, signal }).text(), { instanceOf: AbortedError })
  t.is(error.cause?.name, 'TimeoutError')
})

test('a reader that does not read holds the writing back, not the engine', async (t) => {
  const slow = model.generate(SENTENCE, LONG)[Symbol.asyncIterator]()
  await slow.next()
  await sleep(100)
  t.true((await model.generate('Das ist gut.').text()).length > 0)
  await slow.return()
})

test('a result is whole though nobody reads the stream', async (t) => {
  const { tokens, finishReason } = await model.generate(SENTENCE, { ...LONG, maxTokens: 200 }).result
  t.true(tokens.length > 16)
  t.true(['length', 'stop'].includes(finishReason))
})

test('dispose ends what is being written, and can be called again', async (t) => {
  const own = await load(SMALL)
  const generation = own.generate(SENTENCE, LONG)
  const iterator = generation[Symbol.asyncIterator]()
  await iterator.next()
  await Promise.all([own.dispose(), own.dispose()])
  await own[Symbol.asyncDispose]()
  await t.throwsAsync(generation.result, { instanceOf: DisposedError })
  await t.throwsAsync(own.generate(SENTENCE).result, { instanceOf: DisposedError })
  await t.throwsAsync(own.generate(SENTENCE).text(), { instanceOf: DisposedError })
  await t.throwsAsync(own.tokenize('a'), { instanceOf: DisposedError })
  await t.throwsAsync(own.detokenize([1]), { instanceOf: DisposedError })
})

test('loading can be aborted, before and during', async (t) => {
  await t.throwsAsync(load(LARGE, { signal: AbortSignal.abort() }), { instanceOf: AbortedError })
  const controller = new AbortController()
  const loading = load(LARGE, { signal: controller.signal })
  controller.abort(new Error('enough'))
  const error = await t.throwsAsync(loading, { instanceOf: AbortedError })
  t.is(error.cause?.message, 'enough')
})

test('progress rises to its total', async (t) => {
  const seen = []
  const own = await load(LARGE, { onProgress: (progress) => seen.push(progress) })
  await own.dispose()
  t.true(seen.length > 0)
  t.true(seen.every(({ stage, done, total }) => stage === 'load' && done <= total && total > 1e7))
  t.deepEqual(seen.map(({ done }) => done), seen.map(({ done }) => done).toSorted((a, b) => a - b))
})

test.serial('many models can be loaded and disposed one after the other', async (t) => {
  let before
  for (let round = 0; round < 30; round += 1) {
    const own = await load(SMALL)
    await own.generate('Das ist gut.').text()
    await own.dispose()
    if (round === 9) before = process.memoryUsage().rss
  }
  const grown = (process.memoryUsage().rss - before) / 1e6
  t.true(grown < 40, `grew by ${grown.toFixed(0)} MB`)
})

test.serial('the event loop stays free while a text is written', async (t) => {
  const histogram = monitorEventLoopDelay({ resolution: 1 })
  histogram.enable()
  for await (const _ of model.generate(SENTENCE, { ...LONG, maxTokens: 400 }));
  histogram.disable()
  t.true(histogram.percentile(99) / 1e6 <= 10, `p99 is ${histogram.percentile(99) / 1e6} ms`)
})

test('every error of a model is one of ours', async (t) => {
  const error = await t.throwsAsync(model.generate('a', { maxTokens: -1 }).text())
  t.true(TrefoilError.isInstance(error))
})
