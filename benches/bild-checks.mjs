/**
 * What BiLD and exact speculation must never get wrong, over real sentences and not only the repository's own.
 *
 *   npm run bench -- bild-checks --data FOLDER [--prompts 500] [--threads 2] [--recorded FILE]
 *
 * FOLDER, or TREFOIL_DATA, holds `tatoeba/test.jsonl`. Counts how often a text is, token by token, the one that it has
 * to be, and fails where one is not. FILE holds what Algorithm 1 writes over transformers' probabilities, and what it
 * took: `python scripts/golden_bild.py --sentences FOLDER/tatoeba/test.jsonl --count 500 --out FILE`.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { accountOf, readDecoding } from '../__test__/support/algorithm.mjs'

const BATCH = 8
/** BiLD with what is beyond the published algorithm. */
const BEYOND = { type: 'bild', fallback: 0.2, cumulative: true, candidates: 0.07, rollback: 3 }
const maxTokens = 96
const sampling = { temperature: 0.8, topP: 0.95 }

export async function run(args) {
  const { values } = parseArgs({
    args,
    options: {
      data: { type: 'string', default: process.env.TREFOIL_DATA },
      prompts: { type: 'string', default: '500' },
      threads: { type: 'string', default: '2' },
      recorded: { type: 'string' }
    }
  })
  if (!values.data) throw new Error('--data or TREFOIL_DATA is missing; it names the folder of tatoeba')
  const [prompts, threads] = [Number(values.prompts), Number(values.threads)]
  const { load } = await import('../esm/index.js')
  const folder = (name) => fileURLToPath(new URL(`../models/de-en/${name}`, import.meta.url))
  const pair = await load(folder('large'), { draft: folder('aligned'), threads })
  const little = await load(folder('aligned'), { threads })
  const file = await readFile(join(values.data, 'tatoeba/test.jsonl'), 'utf8')
  const cases = file.trimEnd().split('\n').slice(0, prompts).map((line) => JSON.parse(line))
  const counts = {}
  const check = (name, found, expected) => {
    counts[name] ??= { texts: 0, same: 0 }
    counts[name].texts += 1
    counts[name].same += Number(JSON.stringify(found) === JSON.stringify(expected))
  }
  const write = async (model, de, options) => (await model.generate(de, { maxTokens, ...options }).result).tokens
  try {
    for (const [seed, { de }] of cases.entries()) {
      const large = await write(pair, de, { decoding: 'plain' })
      check('fallback above 1: the large text', await write(pair, de, { decoding: { type: 'bild', fallback: 1.01 } }), large)
      check('rollback 0: the large text', await write(pair, de, { decoding: { type: 'bild', rollback: 0 } }), large)
      const small = await write(little, de, { decoding: 'plain' })
      const forgiving = { type: 'bild', fallback: 0, rollback: Infinity }
      check('fallback 0, rollback ∞: the little text', await write(pair, de, { decoding: forgiving }), small)
      check('the same, tail not verified', await write(pair, de, { decoding: { ...forgiving, verifyTail: false } }), small)
      check('speculative: the large text', await write(pair, de, { decoding: 'speculative' }), large)
      const sampled = { ...sampling, seed }
      const drawn = await write(pair, de, { ...sampled, decoding: 'speculative' })
      check('speculative, sampled: the large text', drawn, await write(pair, de, { ...sampled, decoding: 'plain' }))
    }
    for (const decoding of ['bild', BEYOND, 'speculative']) await batches(pair, cases, decoding, check)
  } finally {
    await Promise.all([pair.dispose(), little.dispose()])
  }
  const calls = values.recorded && (await algorithm(values.recorded, { load, folder, threads }, check))
  for (const [name, { texts, same }] of Object.entries(counts)) console.log(`  ${String(same).padStart(5)} of ${texts}  ${name}`)
  const wrong = Object.values(counts).some(({ texts, same }) => same !== texts)
  if (wrong) throw new Error('a text is not what it has to be')
  return { shape: { prompts: cases.length, threads }, counts, ...calls }
}

/** Texts and calls against those of Algorithm 1, on both pairs; the large model's calls a token, of either. */
async function algorithm(file, { load, folder, threads }, check) {
  const recorded = JSON.parse(await readFile(file, 'utf8'))
  const decodings = recorded.decodings.map(readDecoding)
  const calls = {}
  for (const name of ['small', 'aligned']) {
    const pair = await load(folder('large'), { draft: folder(name), threads })
    try {
      for (const { de, texts } of recorded[name]) {
        for (const [at, decoding] of decodings.entries()) {
          const result = await pair.generate(de, { decoding, maxTokens: recorded.maxTokens }).result
          check(`${name}: tokens and calls of Algorithm 1`, accountOf(result), texts[at])
          const setting = `${name} ${JSON.stringify(recorded.decodings[at])}`
          calls[setting] ??= { engine: { calls: 0, tokens: 0 }, algorithm: { calls: 0, tokens: 0 } }
          for (const [by, [tokens, large]] of [['engine', accountOf(result)], ['algorithm', texts[at]]]) {
            calls[setting][by].calls += large
            calls[setting][by].tokens += tokens.length
          }
        }
      }
    } finally {
      await pair.dispose()
    }
  }
  for (const [setting, by] of Object.entries(calls)) {
    const [engine, own] = ['engine', 'algorithm'].map((side) => (by[side].calls / by[side].tokens).toFixed(4))
    console.log(`  ${engine} large calls a token, ${own} by the algorithm: ${setting}`)
  }
  return { calls }
}

/** Eight at once against each alone: as answers of one session, ragged by what they continue, and as generations. */
async function batches(pair, cases, decoding, check) {
  const name = typeof decoding === 'string' ? decoding : `${decoding.type} with candidates`
  const tokens = (results) => results.map((result) => result.tokens)
  for (const { de, en } of cases) {
    const words = en.split(' ')
    const prompts = Array.from({ length: BATCH }, (_, at) => words.slice(0, at % (words.length + 1)).join(' '))
    const document = await pair.read(de)
    const ask = async (questions) => tokens(await document.ask(questions, { maxTokens: 24, decoding }).result)
    const together = await ask(prompts)
    for (const [at, prompt] of prompts.entries()) check(`${name}: 8 answers of one session`, together[at], (await ask([prompt]))[0])
    await document.dispose()
  }
  for (let first = 0; first < cases.length; first += BATCH) {
    const batch = cases.slice(first, first + BATCH)
    const write = ({ de }) => pair.generate(de, { maxTokens, decoding }).result
    const together = tokens(await Promise.all(batch.map(write)))
    for (const [at, one] of batch.entries()) check(`${name}: 8 generations at once`, together[at], (await write(one)).tokens)
  }
}
