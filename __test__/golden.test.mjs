/** Texts of the embedded models and of the fixtures against those that transformers wrote. */
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { load } from '../esm/index.js'
import { ALIGNED, LARGE, QWEN, SMALL, SMOLLM2 } from './support/models.mjs'

async function lines(path) {
  return (await readFile(path, 'utf8')).trimEnd().split('\n').map((line) => JSON.parse(line))
}

for (const [name, folder] of Object.entries({ large: LARGE, small: SMALL, aligned: ALIGNED })) {
  test(`the ${name} translation model writes its hundred goldens token by token`, async (t) => {
    const goldens = await lines(join(folder, 'golden.jsonl'))
    t.is(goldens.length, 100)
    const model = await load(folder)
    try {
      const results = await Promise.all(goldens.map(({ de }) => model.generate(de, { maxTokens: 64 }).result))
      for (const [at, { de, tokens, text }] of goldens.entries()) {
        t.deepEqual(results[at].tokens, tokens, de)
        t.is(results[at].text, text, de)
      }
    } finally {
      await model.dispose()
    }
  })
}

// What rounding moves is a pick that was close: 94 and 99 of the hundred stay.
for (const [dtype, share] of Object.entries({ q8_0: 0.6, bf16: 1.2 })) {
  test(`as ${dtype} the pair writes nearly all goldens, and every exact decoding what plain decoding does`, async (t) => {
    const goldens = await lines(join(LARGE, 'golden.jsonl'))
    const [whole, model] = [await load(LARGE), await load(LARGE, { draft: ALIGNED, dtype })]
    try {
      t.is(model.info.dtype, dtype)
      t.true(model.info.bytes < share * whole.info.bytes, `${model.info.bytes} of ${whole.info.bytes}`)
      const write = (decoding) =>
        Promise.all(goldens.map(({ de }) => model.generate(de, { maxTokens: 64, decoding }).result))
      const plain = await write('plain')
      const equal = plain.filter(({ text }, at) => text === goldens[at].text).length
      t.true(equal >= 90, `${equal} of ${goldens.length}`)
      for (const decoding of ['speculative', 'lookahead', { type: 'bild', fallback: 1.1 }]) {
        const results = await write(decoding)
        for (const [at, { tokens }] of results.entries()) t.deepEqual(tokens, plain[at].tokens, goldens[at].de)
      }
    } finally {
      await Promise.all([whole.dispose(), model.dispose()])
    }
  })
}

const real = existsSync(SMOLLM2) ? test : test.skip

real('SmolLM2 writes what was recorded of llama.cpp, wherever the pick was not close', async (t) => {
  const recorded = JSON.parse(await readFile(new URL('../fixtures/agree.json', import.meta.url), 'utf8')).smollm2
  const model = await load(SMOLLM2, { contextLength: 512 })
  try {
    for (const { prompt, ids, tokens, leads } of recorded) {
      t.deepEqual(await model.tokenize(prompt), ids, prompt)
      const result = await model.generate(prompt, { maxTokens: tokens.length }).result
      const at = tokens.findIndex((token, index) => result.tokens[index] !== token)
      // A lead within rounding of four-bit weights says nothing; a wider one is a mistake.
      if (at >= 0) t.true(leads[at] < 0.2, `${JSON.stringify(prompt)} differs at ${at}, where the lead is ${leads[at]}`)
    }
  } finally {
    await model.dispose()
  }
})

for (const { name, path } of QWEN) {
  const there = existsSync(path) ? test : test.skip

  there(`${name} writes what its weights say without rounding`, async (t) => {
    const cases = JSON.parse(await readFile(new URL('../fixtures/agree.json', import.meta.url), 'utf8'))[name]
    const model = await load(path, { contextLength: 512, cacheType: 'f16' })
    try {
      const equal = []
      for (const { prompt, ids, exact } of cases) {
        t.deepEqual(await model.tokenize(prompt), ids, prompt)
        const { tokens } = await model.generate(prompt, { maxTokens: 32 }).result
        equal.push(tokens.join() === exact.join())
      }
      const count = equal.filter(Boolean).length
      // Activations are rounded to bytes, and two picks in twenty texts may be that close.
      t.true(count >= 18, `${count} of ${cases.length}`)
    } finally {
      await model.dispose()
    }
  })
}

real('SmolLM2 reads messages as its template writes them', async (t) => {
  const model = await load(SMOLLM2, { contextLength: 512 })
  try {
    const content = 'What is the capital of France?'
    const written = `<|im_start|>user\n${content}<|im_end|>\n<|im_start|>assistant\n`
    const system = 'You are a terse assistant.'
    const messages = [{ role: 'system', content: system }, { role: 'user', content }]
    const templated = await model.generate(messages, { maxTokens: 24 }).result
    const plain = await model.generate(`<|im_start|>system\n${system}<|im_end|>\n${written}`, { maxTokens: 24 }).result
    t.deepEqual(templated.tokens, plain.tokens)
    t.is(templated.stats.promptTokens, plain.stats.promptTokens)
    t.regex(await model.generate(written, { maxTokens: 24 }).text(), /Paris/)
  } finally {
    await model.dispose()
  }
})
