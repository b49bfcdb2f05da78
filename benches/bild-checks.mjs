/**
 * What BiLD and exact speculation must never get wrong, over real sentences and not only the repository's own.
 *
 *   npm run bench -- bild-checks --data FOLDER [--prompts 500] [--threads 2]
 *
 * FOLDER, or TREFOIL_DATA, holds `tatoeba/test.jsonl`. Counts how often a text is, token by token, the one that it has
 * to be, and fails where one is not.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const BATCH = 8
const maxTokens = 96
const sampling = { temperature: 0.8, topP: 0.95 }

export async function run(args) {
  const { values } = parseArgs({
    args,
    options: {
      data: { type: 'string', default: process.env.TREFOIL_DATA },
      prompts: { type: 'string', default: '500' },
      threads: { type: 'string', default: '2' }
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
    for (const decoding of ['bild', 'speculative']) await batches(pair, cases, decoding, check)
  } finally {
    await Promise.all([pair.dispose(), little.dispose()])
  }
  for (const [name, { texts, same }] of Object.entries(counts)) console.log(`  ${String(same).padStart(5)} of ${texts}  ${name}`)
  const wrong = Object.values(counts).some(({ texts, same }) => same !== texts)
  if (wrong) throw new Error('a text is not what it has to be')
  return { shape: { prompts: cases.length, threads }, counts }
}

/** Eight at once against each alone: as answers of one session, ragged by what they continue, and as generations. */
async function batches(pair, cases, decoding, check) {
  const tokens = (results) => results.map((result) => result.tokens)
  for (const { de, en } of cases) {
    const words = en.split(' ')
    const prompts = Array.from({ length: BATCH }, (_, at) => words.slice(0, at % (words.length + 1)).join(' '))
    const document = await pair.read(de)
    const ask = async (questions) => tokens(await document.ask(questions, { maxTokens: 24, decoding }).result)
    const together = await ask(prompts)
    for (const [at, prompt] of prompts.entries()) check(`${decoding}: 8 answers of one session`, together[at], (await ask([prompt]))[0])
    await document.dispose()
  }
  for (let first = 0; first < cases.length; first += BATCH) {
    const batch = cases.slice(first, first + BATCH)
    const write = ({ de }) => pair.generate(de, { maxTokens, decoding }).result
    const together = tokens(await Promise.all(batch.map(write)))
    for (const [at, one] of batch.entries()) check(`${decoding}: 8 generations at once`, together[at], (await write(one)).tokens)
  }
}
