/** How a generation is read, over a fake native one. */
import { getEventListeners } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { AbortedError, InvalidOptionError, OutOfMemoryError } from '../esm/index.js'
import { Writing } from '../esm/generation.js'
import { fakeSource, STATS } from './support/fake.mjs'

async function collect(generation) {
  let text = ''
  for await (const chunk of generation) text += chunk.text
  return text
}

test('chunks arrive one by one and the result says the same', async (t) => {
  const generation = new Writing(fakeSource({ steps: 3 }))
  const chunks = []
  for await (const chunk of generation) chunks.push(chunk)
  t.deepEqual(chunks, [
    { text: 'a', tokens: [{ id: 97, from: 'model' }] },
    { text: 'b', tokens: [{ id: 98, from: 'model' }] },
    { text: 'c', tokens: [{ id: 99, from: 'model' }] }
  ])
  t.deepEqual(await generation.result, { text: 'abc', tokens: [97, 98, 99], finishReason: 'stop', stats: STATS })
  t.is(await generation.text(), 'abc')
})

test('result and text work without iterating, however small the queue is', async (t) => {
  const source = fakeSource({ steps: 40, bound: 2 })
  const generation = new Writing(source)
  t.is((await generation.result).text.length, 40)
  t.true(source.log.unbounds >= 1)
  t.is((await generation.text()).length, 40)
})

test('a slow reader holds the writer back', async (t) => {
  const source = fakeSource({ steps: 100, bound: 4 })
  const iterator = new Writing(source)[Symbol.asyncIterator]()
  await iterator.next()
  await sleep(150)
  t.true(source.written() <= 6, `${source.written()} were written`)
  await iterator.return()
})

test('iterating and awaiting the result at the same time share the events', async (t) => {
  const source = fakeSource({ steps: 10 })
  const generation = new Writing(source)
  const [text, result] = await Promise.all([collect(generation), generation.result])
  t.is(text, 'abcdefghij')
  t.is(result.text, text)
})

test('several next calls at once each get their own chunk, in order', async (t) => {
  const iterator = new Writing(fakeSource({ steps: 3 }))[Symbol.asyncIterator]()
  const got = await Promise.all([iterator.next(), iterator.next(), iterator.next(), iterator.next(), iterator.next()])
  t.deepEqual(got.map(({ value }) => value?.text), ['a', 'b', 'c', undefined, undefined])
  t.deepEqual(got.map(({ done }) => done), [false, false, false, true, true])
})

test('it iterates once', async (t) => {
  const generation = new Writing(fakeSource())
  await collect(generation)
  const error = t.throws(() => generation[Symbol.asyncIterator](), { instanceOf: InvalidOptionError })
  t.regex(error.message, /once/)
})

test('break cancels, and the result is what there is by then', async (t) => {
  const source = fakeSource({ steps: 1000 })
  const generation = new Writing(source)
  for await (const chunk of generation) if (chunk.text === 'b') break
  t.is(source.log.cancels, 1)
  const { text, finishReason } = await generation.result
  t.is(finishReason, 'abort')
  t.true(text.startsWith('ab') && text.length < 20, text)
})

test('return before the first chunk cancels', async (t) => {
  const source = fakeSource({ steps: 1000 })
  const iterator = new Writing(source)[Symbol.asyncIterator]()
  t.deepEqual(await iterator.return(), { done: true, value: undefined })
  t.is(source.log.cancels, 1)
  t.deepEqual(await iterator.next(), { done: true, value: undefined })
})

test('an error thrown into the loop cancels and comes out', async (t) => {
  const source = fakeSource({ steps: 1000 })
  const mine = new Error('mine')
  await t.throwsAsync(
    async () => {
      for await (const _ of new Writing(source)) throw mine
    },
    { is: mine }
  )
  t.is(source.log.cancels, 1)
  const iterator = new Writing(fakeSource({ steps: 1000 }))[Symbol.asyncIterator]()
  await t.throwsAsync(iterator.throw(mine), { is: mine })
})

test('a signal makes the iterator throw and the result resolve', async (t) => {
  const source = fakeSource({ steps: 1000 })
  const controller = new AbortController()
  const generation = new Writing(source, controller.signal)
  const reason = new Error('enough')
  let seen = ''
  const error = await t.throwsAsync(
    async () => {
      for await (const chunk of generation) {
        seen += chunk.text
        if (seen === 'abc') controller.abort(reason)
      }
    },
    { instanceOf: AbortedError, code: 'ABORTED' }
  )
  t.is(error.cause, reason)
  t.is(seen, 'abc')
  const { text, finishReason } = await generation.result
  t.is(finishReason, 'abort')
  t.true(text.startsWith('abc'))
  await t.throwsAsync(generation.text(), { instanceOf: AbortedError })
})

test('a signal that lives longer lets go of what has ended', async (t) => {
  const { signal } = new AbortController()
  for (let turn = 0; turn < 30; turn += 1) {
    for await (const _ of new Writing(fakeSource({ steps: 5 }), signal)) break
  }
  await new Writing(fakeSource(), signal).text()
  t.is(getEventListeners(signal, 'abort').length, 0)
})

test('a signal that was aborted before ends it at once', async (t) => {
  const source = fakeSource({ steps: 1000 })
  const generation = new Writing(source, AbortSignal.abort())
  t.is(source.log.cancels, 1)
  await t.throwsAsync(collect(generation), { instanceOf: AbortedError })
  t.is((await generation.result).finishReason, 'abort')
})

test('a signal aborted afterwards changes nothing', async (t) => {
  const controller = new AbortController()
  const source = fakeSource({ steps: 2 })
  const generation = new Writing(source, controller.signal)
  t.is(await collect(generation), 'ab')
  controller.abort()
  t.is(source.log.cancels, 0)
  t.is(await generation.text(), 'ab')
})

test('a failure reaches iterator, result and text, with its causes', async (t) => {
  const failure = { kind: 'OutOfMemory', message: 'no room', causes: ['first', 'second'] }
  const generation = new Writing(fakeSource({ steps: 1, failure }))
  let seen = ''
  const error = await t.throwsAsync(
    async () => {
      for await (const chunk of generation) seen += chunk.text
    },
    { instanceOf: OutOfMemoryError, message: 'no room', code: 'OUT_OF_MEMORY' }
  )
  t.is(seen, 'a')
  t.is(error.cause.message, 'first')
  t.is(error.cause.cause.message, 'second')
  await t.throwsAsync(generation.result, { is: error })
  await t.throwsAsync(generation.text(), { is: error })
})

test('a failure that nobody awaits does not end the process', async (t) => {
  const unhandled = []
  const listen = (reason) => unhandled.push(reason)
  process.on('unhandledRejection', listen)
  const failure = { kind: 'Internal', message: 'broken', causes: [] }
  void new Writing(fakeSource({ steps: 1, failure }))
  void new Writing(fakeSource({ steps: 1, failure })).result
  void Writing.failed(new Error('never begun')).result
  await sleep(60)
  process.off('unhandledRejection', listen)
  t.deepEqual(unhandled, [])
})

test('a generation that could not begin says why wherever it is read', async (t) => {
  const error = new InvalidOptionError('maxTokens is -1')
  await t.throwsAsync(collect(Writing.failed(error)), { is: error })
  await t.throwsAsync(Writing.failed(error).result, { is: error })
  await t.throwsAsync(Writing.failed(error).text(), { is: error })
})

test('tokens say who had them first, and their log-probabilities', async (t) => {
  const events = [
    { kind: 'chunk', text: 'ab', ids: [1, 2], accepted: 1, logprobs: [-0.5, -1.5] },
    { kind: 'done', results: [{ text: 'ab', tokens: [1, 2], finishReason: 'length', stats: STATS }] }
  ]
  const generation = new Writing({ next: async () => events.shift() ?? null, cancel() {}, unbound() {} })
  const { value } = await generation[Symbol.asyncIterator]().next()
  const tokens = [
    { id: 1, from: 'draft', logprob: -0.5 },
    { id: 2, from: 'model', logprob: -1.5 }
  ]
  t.deepEqual(value, { text: 'ab', tokens })
})

test('an engine that ends without a result is a fault, not a wait', async (t) => {
  const generation = new Writing({ next: async () => null, cancel() {}, unbound() {} })
  await t.throwsAsync(generation.result, { code: 'INTERNAL' })
})
