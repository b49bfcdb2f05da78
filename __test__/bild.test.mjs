/** BiLD and exact speculation on the embedded pair: what they write, and what they refuse. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { InvalidOptionError, load, ModelLoadError } from '../esm/index.js'
import { LARGE, SMALL, SMOLLM2 } from './support/models.mjs'

async function goldens(folder) {
  return (await readFile(join(folder, 'golden.jsonl'), 'utf8')).trimEnd().split('\n').map((line) => JSON.parse(line))
}

let pair
let large
let small
test.before(async () => {
  pair = await load(LARGE, { draft: SMALL })
  large = await goldens(LARGE)
  small = await goldens(SMALL)
})
test.after.always(() => pair?.dispose())

const write = (de, options) => pair.generate(de, { maxTokens: 64, ...options }).result

test('exact speculation writes the hundred goldens of the large model in fewer steps', async (t) => {
  let steps = 0
  let tokens = 0
  for (const golden of large) {
    const result = await write(golden.de, { decoding: 'speculative' })
    t.deepEqual(result.tokens, golden.tokens, golden.de)
    t.is(result.text, golden.text)
    steps += result.stats.steps
    tokens += result.tokens.length
  }
  t.true(steps < 0.8 * tokens, `${steps} steps for ${tokens} tokens`)
})

test('a little model that is never sure leaves the large model’s text', async (t) => {
  for (const golden of large) {
    const result = await write(golden.de, { decoding: { type: 'bild', fallback: 1.01 } })
    t.deepEqual(result.tokens, golden.tokens, golden.de)
    t.is(result.stats.draftForwards, 0)
  }
})

for (const verifyTail of [true, false]) {
  test(`a large model that forgives everything leaves the little one’s text, verifyTail ${verifyTail}`, async (t) => {
    const decoding = { type: 'bild', fallback: 0, rollback: Infinity, verifyTail }
    for (const golden of small) {
      const { tokens, stats, finishReason } = await write(golden.de, { decoding })
      t.deepEqual(tokens, golden.tokens, golden.de)
      t.is(stats.rollbacks + stats.fallbacks, 0)
      // Full chains of seven are judged; so is the rest, with the end token in it, unless that ends the text unseen.
      const ended = finishReason === 'stop'
      const last = ended && !verifyTail ? 0 : 1
      t.is(stats.steps, Math.floor((tokens.length - (ended ? 0 : 1)) / 7) + last, golden.de)
    }
  })
}

test('a rollback of 0 forgives nothing', async (t) => {
  for (const golden of large.slice(0, 30)) {
    const result = await write(golden.de, { decoding: { type: 'bild', fallback: 0, rollback: 0 } })
    t.deepEqual(result.tokens, golden.tokens, golden.de)
    t.is(result.stats.fallbacks, 0)
  }
})

test('sampled speculation writes what the large model samples', async (t) => {
  for (const [seed, { de }] of large.slice(0, 40).entries()) {
    const sampling = { temperature: 0.9, topP: 0.95, seed, logprobs: true }
    const plain = await write(de, { ...sampling, decoding: 'plain' })
    const drafted = await write(de, { ...sampling, decoding: { type: 'speculative', maxDraft: 5 } })
    t.deepEqual(drafted.tokens, plain.tokens, de)
    t.true(drafted.stats.steps <= plain.stats.steps)
  }
})

test('an early exit drafts for its own model and takes no memory for weights', async (t) => {
  const model = await load(LARGE, { draft: { layers: 3 } })
  const alone = await load(LARGE)
  try {
    t.is(model.info.bytes, alone.info.bytes)
    let accepted = 0
    for (const golden of large) {
      const result = await model.generate(golden.de, { maxTokens: 64, decoding: 'speculative' }).result
      t.deepEqual(result.tokens, golden.tokens, golden.de)
      t.is(result.stats.encoderForwards, 1)
      accepted += result.stats.acceptedTokens
    }
    t.true(accepted > 0)
  } finally {
    await model.dispose()
    await alone.dispose()
  }
})

test('the first layers of a causal model draft for it', async (t) => {
  const model = await load(SMOLLM2, { draft: { layers: 1 } })
  try {
    const plain = await model.generate('Once upon a time', { maxTokens: 40 }).result
    const drafted = await model.generate('Once upon a time', { maxTokens: 40, decoding: 'speculative' }).result
    t.deepEqual(drafted.tokens, plain.tokens)
  } finally {
    await model.dispose()
  }
})

test('generations of every decoding can run at the same time', async (t) => {
  const decodings = ['plain', 'speculative', { type: 'bild', fallback: 1.01 }, { type: 'speculative', maxDraft: 3 }]
  const results = await Promise.all(large.map(({ de }, at) => write(de, { decoding: decodings[at % 4] })))
  for (const [at, golden] of large.entries()) t.deepEqual(results[at].tokens, golden.tokens, golden.de)
})

test('chunks fold to the text, and a chunk is a call of the large model', async (t) => {
  for (const { de } of large.slice(0, 20)) {
    const generation = pair.generate(de, { maxTokens: 64, decoding: 'bild' })
    let text = ''
    const tokens = []
    let chunks = 0
    for await (const chunk of generation) {
      text += chunk.text
      tokens.push(...chunk.tokens.map(({ id }) => id))
      chunks += 1
    }
    const result = await generation.result
    t.is(text, result.text)
    t.deepEqual(tokens, result.tokens)
    t.true(chunks <= result.stats.steps)
    t.is(result.stats.decoding, 'bild')
  }
})

const DECODINGS = {
  'fallback NaN': [{ type: 'bild', fallback: Number.NaN }, /decoding\.fallback is NaN; allowed: a number from 0/],
  'fallback -0.1': [{ type: 'bild', fallback: -0.1 }, /decoding\.fallback is -0\.1/],
  'rollback -1': [{ type: 'bild', rollback: -1 }, /decoding\.rollback is -1/],
  'rollback as text': [{ type: 'bild', rollback: '2' }, /decoding\.rollback is '2'/],
  'maxDraft 0': [{ type: 'bild', maxDraft: 0 }, /decoding\.maxDraft is 0; allowed: a whole number from 1/],
  'maxDraft 1e6': [{ type: 'speculative', maxDraft: 1e6 }, /decoding\.maxDraft is 1000000/],
  'candidates 0': [{ type: 'bild', candidates: 0 }, /decoding\.candidates is 0; allowed: a number from 0\.01 to 1/],
  'candidates 1.1': [{ type: 'speculative', candidates: 1.1 }, /decoding\.candidates is 1\.1; allowed: a number from 0\.01 to 1/],
  'cumulative as text': [{ type: 'speculative', cumulative: 'yes' }, /decoding\.cumulative is 'yes'; allowed: true or false/],
  'verifyTail as a number': [{ type: 'bild', verifyTail: 1 }, /decoding\.verifyTail is 1; allowed: true or false/],
  'a threshold of exact speculation': [{ type: 'speculative', rollback: 1 }, /unknown option 'rollback'/]
}

for (const [title, [decoding, message]] of Object.entries(DECODINGS)) {
  test(`${title} is an InvalidOptionError`, async (t) => {
    await t.throwsAsync(write('Hallo!', { decoding }), { instanceOf: InvalidOptionError, message })
  })
}

for (const decoding of ['bild', 'speculative']) {
  test(`${decoding} without a draft model is an InvalidOptionError that names draft`, async (t) => {
    const model = await load(SMALL)
    try {
      await t.throwsAsync(model.generate('Hallo!', { decoding }).result, {
        instanceOf: InvalidOptionError,
        message: new RegExp(`decoding is '${decoding}'.*draft`)
      })
    } finally {
      await model.dispose()
    }
  })
}

const DRAFTS = {
  'a draft model of another vocabulary': [join(SMALL, '../../dst'), ModelLoadError, /draft model does not fit.*5000.*6000/],
  'a draft model that is not there': ['./no/such/folder', ModelLoadError, /no\/such\/folder/],
  'a draft model of another kind': [SMOLLM2, ModelLoadError, /it is a causal model, the model is seq2seq/],
  'more draft layers than the model has': [{ layers: 5 }, InvalidOptionError, /draft\.layers is 5; allowed: .* from 1 to 4/],
  'no draft layers': [{ layers: 0 }, InvalidOptionError, /draft\.layers is 0/],
  'draft without layers': [{}, InvalidOptionError, /draft is an object/],
  'draft as a number': [5, InvalidOptionError, /draft is 5; allowed: a folder/],
  'an empty draft': ['', InvalidOptionError, /draft is ''/]
}

for (const [title, [draft, instanceOf, message]] of Object.entries(DRAFTS)) {
  test(`load: ${title} is told`, async (t) => {
    await t.throwsAsync(load(LARGE, { draft }), { instanceOf, message })
  })
}

/** What a reader shows at each moment of an eager stream, and its chunks. */
async function readEagerly(generation) {
  const chunks = []
  const shown = ['']
  for await (const chunk of generation) {
    const before = shown.at(-1)
    shown.push(before.slice(0, before.length - (chunk.revoke ?? 0)) + chunk.text)
    chunks.push(chunk)
  }
  return { chunks, shown }
}

// Thresholds under which the large model is asked late and refuses much.
const EAGER = {
  bild: { type: 'bild', fallback: 0.05, rollback: 0.5 },
  'bild with candidates': { type: 'bild', fallback: 0.05, cumulative: true, candidates: 0.05, rollback: 0.5 },
  speculative: { type: 'speculative', fallback: 0.2, cumulative: false }
}
for (const [name, decoding] of Object.entries(EAGER)) {
  test(`eager events of ${name} fold to the text, and hold the committed stream`, async (t) => {
    let tentative = 0
    let revoked = 0
    for (const { de } of large.slice(0, 40)) {
      const options = { maxTokens: 64, decoding, stop: ['?', 'him'] }
      const generation = pair.generate(de, { ...options, events: 'eager' })
      const { chunks, shown } = await readEagerly(generation)
      const result = await generation.result
      t.is(shown.at(-1), result.text, de)
      const committed = []
      for await (const chunk of pair.generate(de, options)) committed.push(chunk)
      const judged = chunks.filter((chunk) => !chunk.tentative).map(({ text, tokens }) => ({ text, tokens }))
      // A step that kept no token and no text still takes back what was tentative.
      t.deepEqual(judged.filter(({ text, tokens }) => text !== '' || tokens.length > 0), committed)
      t.true(committed.every((chunk) => !('tentative' in chunk) && !('revoke' in chunk)))
      tentative += chunks.filter((chunk) => chunk.tentative).length
      // What was shown and is no beginning of the text was taken back.
      revoked += shown.filter((text) => !result.text.startsWith(text)).length
    }
    t.true(tentative > 100 && revoked > 10, `${tentative} tentative, ${revoked} wrong`)
  })
}

test('eager events of a decoding without a draft model are the committed ones', async (t) => {
  for (const decoding of ['plain', 'lookahead']) {
    const [eager, committed] = await Promise.all(
      ['eager', 'committed'].map(async (events) => {
        const chunks = []
        for await (const chunk of pair.generate(large[0].de, { maxTokens: 64, decoding, events })) chunks.push(chunk)
        return chunks
      })
    )
    t.deepEqual(eager, committed)
  }
})

test('events that are neither are an InvalidOptionError', async (t) => {
  await t.throwsAsync(write('Hallo!', { events: 'all' }), {
    instanceOf: InvalidOptionError,
    message: /options\.events is 'all'; allowed: 'committed' or 'eager'/
  })
})

test('a chunk says which tokens the large model put in place of the little one’s', async (t) => {
  let corrections = 0
  let rollbacks = 0
  for (const { de } of large.slice(0, 40)) {
    const generation = pair.generate(de, { maxTokens: 64, decoding: { type: 'bild', fallback: 0, rollback: 1 } })
    for await (const { tokens } of generation) {
      const own = tokens.filter(({ from }) => from !== 'draft')
      // Nothing falls back, so that whatever is the model's own stands for a token that it refused.
      t.true(own.length <= 1 && own.every(({ from }) => from === 'correction'))
      corrections += own.length
    }
    rollbacks += (await generation.result).stats.rollbacks
  }
  // One that ends the text is a rollback and no token.
  t.true(corrections > 20 && corrections <= rollbacks, `${corrections} of ${rollbacks}`)
  for (const decoding of ['plain', { type: 'bild', fallback: 1.01 }]) {
    for await (const { tokens } of pair.generate(large[0].de, { maxTokens: 64, decoding })) {
      t.true(tokens.every(({ from }) => from === 'model'))
    }
  }
})
