/** Lookahead and Jacobi decoding write the very text of plain decoding. */
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { InvalidOptionError, load } from '../esm/index.js'
import { LARGE, SMOLLM2 } from './support/models.mjs'

const DECODINGS = [
  'lookahead',
  { type: 'lookahead', window: 10, ngram: 5, guesses: 10 },
  { type: 'lookahead', window: 0, ngram: 3, guesses: 4, poolFromPrompt: false },
  { type: 'lookahead', window: 4, ngram: 2, guesses: 0 },
  { type: 'lookahead', window: 5, ngram: 4, guesses: 5, reference: true },
  { type: 'jacobi', block: 6 }
]
const SAMPLED = { temperature: 0.8, topP: 0.9, repetitionPenalty: 1.1, seed: 11 }

/** Writes every prompt by every decoding and compares with plain; gives the mean tokens a step by decoding. */
async function compare(t, model, prompts, options, decodings = DECODINGS) {
  const write = (prompt, decoding) => model.generate(prompt, { ...options, logprobs: true, decoding }).result
  const plain = await Promise.all(prompts.map((prompt) => write(prompt, 'plain')))
  const means = []
  for (const decoding of decodings) {
    const results = await Promise.all(prompts.map((prompt) => write(prompt, decoding)))
    for (const [at, { text, tokens, finishReason }] of results.entries()) {
      t.deepEqual({ text, tokens, finishReason }, pick(plain[at]), JSON.stringify([decoding, prompts[at]]))
    }
    means.push(results.reduce((sum, { stats }) => sum + stats.tokensPerStep, 0) / results.length)
  }
  return means
}

function pick({ text, tokens, finishReason }) {
  return { text, tokens, finishReason }
}

async function german(count) {
  const lines = (await readFile(join(LARGE, 'golden.jsonl'), 'utf8')).trimEnd().split('\n')
  return lines.slice(0, count).map((line) => JSON.parse(line).de)
}

test('translations are the same, greedy and sampled, at a limit and at a stop string', async (t) => {
  const model = await load(LARGE)
  try {
    await compare(t, model, await german(40), { maxTokens: 48 })
    await compare(t, model, await german(20), { maxTokens: 48, ...SAMPLED })
    await compare(t, model, await german(20), { maxTokens: 5 })
    await compare(t, model, await german(20), { maxTokens: 48, stop: ['to ', 'he', '.'] })
  } finally {
    await model.dispose()
  }
})

for (const name of ['smollm2', 'qwen3']) {
  test(`random prompts of the ${name} fixture are continued the same way`, async (t) => {
    const folder = new URL(`../fixtures/${name}`, import.meta.url).pathname
    if (!existsSync(join(folder, 'tokenizer.json'))) return t.pass(`${name} has no tokenizer`)
    const model = await load(folder)
    try {
      const prompts = ['The clover', 'has three leaves', 'a b a b a b', '1 2 3 1 2 3', 'x']
      for (const sampling of [{}, SAMPLED]) await compare(t, model, prompts, { maxTokens: 100, ...sampling })
    } finally {
      await model.dispose()
    }
  })
}

const real = existsSync(SMOLLM2) ? test : test.skip

real('SmolLM2 writes the same text in fewer steps', async (t) => {
  const model = await load(SMOLLM2, { contextLength: 1024, cacheType: 'f16' })
  try {
    const prompts = [
      'def add(a, b):\n    return a + b\n\ndef sub(a, b):\n',
      'Once upon a time there was',
      '1, 2, 3, 4, 5, 6,',
      'The quick brown fox jumps over the lazy dog. The quick brown fox'
    ]
    const [mean] = await compare(t, model, prompts, { maxTokens: 48 }, ['lookahead'])
    t.true(mean > 1.3, `${mean} tokens a step`)
    await compare(t, model, prompts, { maxTokens: 32, ...SAMPLED, stop: ' the' }, ['lookahead'])
  } finally {
    await model.dispose()
  }
})

test('several workers write what one does, in as many steps', async (t) => {
  const prompts = await german(6)
  const write = async (options) => {
    const model = await load(LARGE, options)
    try {
      const texts = []
      for (const decoding of ['plain', ...DECODINGS.slice(0, 3)]) {
        for (const sampling of [{}, SAMPLED]) {
          const results = prompts.map((prompt) => model.generate(prompt, { maxTokens: 48, logprobs: true, decoding, ...sampling }).result)
          for (const { text, tokens, stats } of await Promise.all(results)) texts.push({ text, tokens, steps: stats.steps })
        }
      }
      return texts
    } finally {
      await model.dispose()
    }
  }
  const expected = await write({})
  for (const options of [{ workers: 2 }, { workers: 3, threads: 1 }]) t.deepEqual(await write(options), expected)
})

test('chunks say which tokens a draft had', async (t) => {
  const model = await load(LARGE)
  try {
    const generation = model.generate('Ich habe keine Zeit, ich habe kein Geld.', { decoding: 'lookahead' })
    let drafted = 0
    for await (const { tokens } of generation) {
      t.is(tokens.at(-1)?.from ?? 'model', 'model')
      drafted += tokens.filter(({ from }) => from === 'draft').length
    }
    const { stats } = await generation.result
    t.is(stats.acceptedTokens, drafted)
    t.is(stats.decoding, 'lookahead')
    t.true(stats.poolHits > 0 && stats.poolHits <= stats.steps)
    t.true(stats.poolBytes > 0 && stats.poolBytes <= 4 << 20)
    t.true(stats.hostMs > 0 && stats.hostMs < stats.decodeMs)
  } finally {
    await model.dispose()
  }
})

for (const [name, decoding] of Object.entries({
  'a negative window': { type: 'lookahead', window: -1 },
  'an n-gram of one token': { type: 'lookahead', ngram: 1 },
  'a billion guesses': { type: 'lookahead', guesses: 1e9 },
  'a window that is no number': { type: 'lookahead', window: NaN },
  'too many rows in all': { type: 'lookahead', window: 1000, ngram: 1000 },
  'an unknown parameter': { type: 'lookahead', size: 3 },
  'an empty block': { type: 'jacobi', block: 0 }
})) {
  test(`${name} is an InvalidOptionError`, async (t) => {
    const model = await load(LARGE)
    try {
      await t.throwsAsync(model.generate('Ja.', { decoding }).text(), { instanceOf: InvalidOptionError })
    } finally {
      await model.dispose()
    }
  })
}
