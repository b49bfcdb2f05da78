/**
 * BiLD and exact speculation beside the large and the little model alone, on German to English.
 *
 *   TREFOIL_DATA=folder npm run bench -- bild [--sentences 200] [--sets tatoeba,newstest] [--fallback 0.3,0.5,0.7]
 *     [--rollback 2,5] [--draft 4] [--threads 2] [--outputs folder]
 *
 * `TREFOIL_DATA` holds `tatoeba/test.jsonl` and `newstest/newstest2014.jsonl`: lines of `{ de, en }`. Every sentence is
 * written by all decodings in turn, and who begins moves on with each, so that a ratio is taken between neighbours in
 * time. A setting of BiLD is named by its fallback, rollback and longest draft. `--outputs` keeps the texts, a line each, for other programs to score.
 */
import { existsSync } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { bleu } from './bleu.mjs'

const SETS = { tatoeba: 'tatoeba/test.jsonl', newstest: 'newstest/newstest2014.jsonl' }
const WARM = 10
// The pair was trained on short sentences and may never end a long one.
const MAX_TOKENS = 96

export async function run(args) {
  const { values } = parseArgs({
    args,
    options: {
      sentences: { type: 'string', default: '200' },
      sets: { type: 'string', default: Object.keys(SETS).join(',') },
      fallback: { type: 'string', default: '0.3,0.5,0.7' },
      rollback: { type: 'string', default: '2,5' },
      draft: { type: 'string', default: '4' },
      threads: { type: 'string', default: '2' },
      outputs: { type: 'string' }
    }
  })
  const data = process.env.TREFOIL_DATA
  if (!data) throw new Error('TREFOIL_DATA is not set; it names the folder of tatoeba/ and newstest/')
  const [sentences, threads] = ['sentences', 'threads'].map((key) => {
    const number = Number(values[key])
    if (!Number.isInteger(number) || number < 1) throw new Error(`--${key} is ${values[key]}; it takes a whole number from 1`)
    return number
  })
  const list = (key) => values[key].split(',').map(Number)
  const settings = { large: 'plain', little: 'plain' }
  for (const maxDraft of list('draft')) {
    settings[`speculative ${maxDraft}`] = { type: 'speculative', maxDraft }
    for (const fallback of list('fallback')) {
      for (const rollback of list('rollback')) {
        settings[`bild ${fallback} ${rollback} ${maxDraft}`] = { type: 'bild', fallback, rollback, maxDraft }
      }
    }
  }
  const models = await open(threads)
  const sets = {}
  try {
    for (const name of values.sets.split(',')) {
      if (!Object.hasOwn(SETS, name)) throw new Error(`--sets has '${name}'; it takes ${Object.keys(SETS).join(', ')}`)
      const lines = (await readFile(join(data, SETS[name]), 'utf8')).trimEnd().split('\n').slice(0, sentences)
      const pairs = lines.map((line) => JSON.parse(line))
      const runs = await measure(models, settings, pairs)
      if (values.outputs) await keep(values.outputs, name, runs, pairs)
      sets[name] = summarise(runs, pairs)
      print(name, pairs.length, sets[name])
    }
  } finally {
    await Promise.all(Object.values(models).map((model) => model.dispose()))
  }
  return { shape: { sentences, threads, maxTokens: MAX_TOKENS }, sets }
}

async function open(threads) {
  const entry = new URL('../esm/index.js', import.meta.url)
  if (!existsSync(entry)) throw new Error('the package is not built; run: npm run build')
  const { load } = await import(entry.href)
  const folder = fileURLToPath(new URL('../models/de-en', import.meta.url))
  const draft = join(folder, 'small')
  return { pair: await load(join(folder, 'large'), { draft, threads }), little: await load(draft, { threads }) }
}

/** Every sentence by every setting: texts, times and counts. */
async function measure(models, settings, pairs) {
  const names = Object.keys(settings)
  const runs = Object.fromEntries(names.map((name) => [name, []]))
  for (const [at, { de }] of [...pairs.slice(0, WARM), ...pairs].entries()) {
    for (let turn = 0; turn < names.length; turn += 1) {
      const name = names[(at + turn) % names.length]
      const model = name === 'little' ? models.little : models.pair
      const start = performance.now()
      const { text, tokens, stats } = await model.generate(de, { decoding: settings[name], maxTokens: MAX_TOKENS }).result
      if (at >= WARM) runs[name].push({ text, tokens, stats, ms: performance.now() - start })
    }
  }
  return runs
}

function summarise(runs, pairs) {
  const references = pairs.map(({ en }) => en)
  const total = (list, value) => list.reduce((sum, run) => sum + value(run), 0)
  const reference = bleu(texts(runs.large), references)
  return Object.entries(runs).map(([name, list]) => {
    // An end token takes a call as well, so a text counts one token more than it shows.
    const tokens = total(list, (run) => run.tokens.length + 1)
    const share = (key) => total(list, (run) => run.stats[key]) / tokens
    const score = bleu(texts(list), references)
    return {
      name,
      tokens,
      bleu: score,
      ofLarge: score / reference,
      sameText: list.filter((run, at) => run.text === runs.large[at].text).length / list.length,
      largeCalls: name === 'little' ? 0 : share('steps'),
      littleCalls: name === 'little' ? share('steps') : share('draftForwards'),
      fallbacks: share('fallbacks'),
      rollbacks: share('rollbacks'),
      ms: total(list, (run) => run.ms),
      speed: total(runs.large, (run) => run.ms) / total(list, (run) => run.ms),
      decodeSpeed: total(runs.large, (run) => run.stats.decodeMs) / total(list, (run) => run.stats.decodeMs)
    }
  })
}

const texts = (list) => list.map((run) => run.text)

async function keep(folder, set, runs, pairs) {
  await mkdir(folder, { recursive: true })
  const write = (name, lines) => writeFile(join(folder, `${set}.${name.replaceAll(' ', '_')}.txt`), `${lines.map((line) => line.replaceAll('\n', ' ')).join('\n')}\n`)
  await write('reference', pairs.map(({ en }) => en))
  for (const [name, list] of Object.entries(runs)) await write(name, texts(list))
}

function print(set, count, rows) {
  console.log(`${set}, ${count} sentences; calls, fallbacks and rollbacks a token; times against the large model alone`)
  console.log('  decoding            BLEU  of large  same text  large calls  little calls  fallbacks  rollbacks  end to end  decode')
  for (const row of rows) {
    const columns = [
      [row.bleu.toFixed(2), 6],
      [`${(100 * row.ofLarge).toFixed(1)}%`, 10],
      [`${(100 * row.sameText).toFixed(1)}%`, 11],
      [row.largeCalls.toFixed(3), 13],
      [row.littleCalls.toFixed(3), 14],
      [row.fallbacks.toFixed(3), 11],
      [row.rollbacks.toFixed(3), 11],
      [`${row.speed.toFixed(2)}×`, 12],
      [`${row.decodeSpeed.toFixed(2)}×`, 8]
    ]
    console.log(`  ${row.name.padEnd(17)}${columns.map(([text, width]) => text.padStart(width)).join('')}`)
  }
}
