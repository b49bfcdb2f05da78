/** The default decoding: the text of plain decoding, and drafts only where they pay. */
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { InvalidOptionError, load } from '../esm/index.js'
import { LARGE, SMALL, SMOLLM2 } from './support/models.mjs'

const RAN = new Set(['plain', 'lookahead', 'speculative', 'lookahead+speculative'])
const SAMPLED = { temperature: 0.8, topP: 0.9, repetitionPenalty: 1.1, seed: 5, logprobs: true }
const SENTENCES = ['Wo ist der Bahnhof?', 'Ich habe heute keine Zeit.', 'Das Wetter ist schön, das Wetter ist schön.']

for (const [name, options] of Object.entries({ alone: {}, 'with a draft model': { draft: SMALL }, pinned: { pinThreads: true } })) {
  test(`a model ${name} writes by default what it writes plainly`, async (t) => {
    const model = await load(LARGE, options)
    t.teardown(() => model.dispose())
    for (const sampling of [{}, SAMPLED]) {
      for (const prompt of SENTENCES) {
        const plain = await model.generate(prompt, { ...sampling, decoding: 'plain', maxTokens: 48 }).result
        const auto = await model.generate(prompt, { ...sampling, maxTokens: 48 }).result
        t.deepEqual(auto.tokens, plain.tokens)
        t.is(auto.text, plain.text)
        t.true(RAN.has(auto.stats.decoding), auto.stats.decoding)
        t.true(auto.stats.steps <= plain.stats.steps)
      }
    }
  })
}

const real = existsSync(SMOLLM2) ? test : test.skip

/** Costs of rows in multiples of one, as timed on a calm machine. */
const CALM = { 1: 1, 2: 1.02, 4: 1.15, 8: 1.65, 16: 3 }

real('copying is drafted from the text, and saves steps', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'trefoil-costs-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const options = { contextLength: 1024, costCache: join(folder, 'costs.json') }
  await (await load(SMOLLM2, options)).dispose()
  // A busy machine drafts less, and rightly.
  const known = JSON.parse(await readFile(options.costCache, 'utf8'))
  for (const curve of Object.values(known).flat()) {
    const one = curve[0][1]
    for (const point of curve) point[1] = one * CALM[point[0]]
  }
  await writeFile(options.costCache, JSON.stringify(known))
  const model = await load(SMOLLM2, options)
  t.teardown(() => model.dispose())
  const list = Array.from({ length: 12 }, (_, at) => `item ${at + 1}: a box of ${at + 3} screws for the red shelf`).join('\n')
  const prompt = `${list}\n\nThe same list once more:\n${list.slice(0, 200)}`
  const plain = await model.generate(prompt, { decoding: 'plain', maxTokens: 96 }).result
  const auto = await model.generate(prompt, { decoding: { type: 'auto' }, maxTokens: 96 }).result
  t.deepEqual(auto.tokens, plain.tokens)
  t.is(auto.stats.decoding, 'lookahead')
  t.true(auto.stats.steps * 2 < plain.stats.steps, `${auto.stats.steps} steps for ${plain.stats.steps}`)
  t.true(auto.stats.acceptedTokens > 0 && auto.stats.acceptedTokens <= auto.stats.draftedTokens)
})

test('costs are timed once, remembered, and corrected by real steps', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'trefoil-costs-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const costCache = join(folder, 'deep', 'costs.json')
  for (const draft of [undefined, SMALL, undefined]) {
    const model = await load(LARGE, { costCache, ...(draft && { draft }) })
    await model.dispose()
  }
  const read = async () => Object.values(JSON.parse(await readFile(costCache, 'utf8')))
  const known = await read()
  t.deepEqual(known.map((curves) => curves.length).toSorted(), [1, 2])
  for (const [, seconds] of known.flat(2)) t.true(seconds > 0)
  const model = await load(LARGE, { costCache })
  t.deepEqual(await read(), known)
  await model.generate(SENTENCES[0], { maxTokens: 8 }).result
  await model.dispose()
  const corrected = await read()
  const shape = (all) => all.map((curves) => curves.map((curve) => curve.map(([rows]) => rows)))
  t.deepEqual(shape(corrected), shape(known))
  const changed = corrected.map((curves, at) => [curves.length, JSON.stringify(curves) !== JSON.stringify(known[at])])
  t.deepEqual(changed.toSorted(), [[1, true], [2, false]])
})

test('what is no file or no flag is refused by name', async (t) => {
  await t.throwsAsync(load(LARGE, { costCache: '' }), { instanceOf: InvalidOptionError, message: /costCache/ })
  await t.throwsAsync(load(LARGE, { pinThreads: 1 }), { instanceOf: InvalidOptionError, message: /pinThreads/ })
})
