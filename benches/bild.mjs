/**
 * BiLD and exact speculation beside the large and the little model alone, in one interleaved run.
 *
 *   npm run bench -- bild --data FOLDER [--model de-en] [--sets tatoeba,newstest] [--prompts 200] [--tokens 96]
 *     [--fallback 0.2,0.3,0.6] [--rollback 2,3] [--draft 7] [--candidates 1,0.07] [--threads 2] [--dtype auto]
 *     [--outputs FOLDER]
 *   npm run bench -- bild --data FOLDER --model qwen [--sets human_eval,wikitext2] [--prompts 8]
 *
 * FOLDER, or TREFOIL_DATA, holds the sets in their published formats. The pair of the repository translates, and so does
 * `de-en-unaligned`, whose little model was trained on references and not on the large model's texts; the Qwen pair
 * (2.5-Coder, 0.5B for 1.5B) continues HumanEval's prompts and the first words of WikiText-2's test articles.
 *
 * Every prompt is written by all decodings in turn, and who begins moves on with each, so that a ratio is taken between
 * neighbours in time. A setting of BiLD is named by its fallback, rollback and longest draft. `--candidates` of 1 is the
 * published algorithm; less comes with a cumulative fallback, marked by a +, and ends the name. BLEU is against the set's
 * references; where there are none, ROUGE-L is against the large model's own texts. The perplexity is that of the written
 * text under the large model, which has judged each of its tokens; the little model's own text is judged after the clock
 * has stopped. The curve is drawn to benches/results/bild-MODEL.svg. `--outputs` keeps the texts, a line each, for other
 * programs to score.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { gunzipSync } from 'node:zlib'
import { bleu } from '../esm/tune/bleu.js'
import { plot } from '../esm/tune/plot.js'
import { rougeL } from '../esm/tune/rouge.js'
import { modelPath } from '../scripts/models.mjs'

const lines = (text) => text.trimEnd().split('\n')
const pairs = (text) => lines(text).map((line) => JSON.parse(line)).map(({ de, en }) => ({ prompt: de, reference: en }))

/** Words of an article that its continuation begins from. */
const WORDS = 60
const articles = (text) =>
  text
    .split(/^ = (?!=).*(?<!=) = $/m)
    .map((article) => article.replaceAll(/\s+/g, ' ').trim().split(' '))
    .filter((words) => words.length > 2 * WORDS)
    .map((words) => ({ prompt: words.slice(0, WORDS).join(' ') }))

const embedded = (name) => fileURLToPath(new URL(`../models/de-en/${name}`, import.meta.url))
const translation = (little) => ({
  large: () => embedded('large'),
  little: () => embedded(little),
  // The pair was trained on short sentences and may never end a long one.
  tokens: 96,
  prompts: 200,
  warm: 10,
  sets: { tatoeba: ['tatoeba/test.jsonl', pairs], newstest: ['newstest/newstest2014.jsonl', pairs] }
})
const PAIRS = {
  'de-en': translation('aligned'),
  'de-en-unaligned': translation('small'),
  qwen: {
    large: () => modelPath('qwen2.5-coder-1.5b'),
    little: () => modelPath('qwen2.5-coder-0.5b'),
    tokens: 64,
    prompts: 8,
    warm: 1,
    sets: {
      human_eval: ['human_eval/HumanEval.jsonl', (text) => lines(text).map((line) => ({ prompt: JSON.parse(line).prompt }))],
      wikitext2: ['wikitext2/test.raw.txt.gz', articles]
    }
  }
}

// The little model alone, with every token judged.
const JUDGED = { type: 'bild', fallback: 0, rollback: Infinity }

export async function run(args) {
  const { values } = parseArgs({
    args,
    options: {
      data: { type: 'string', default: process.env.TREFOIL_DATA },
      model: { type: 'string', default: 'de-en' },
      sets: { type: 'string' },
      prompts: { type: 'string' },
      tokens: { type: 'string' },
      fallback: { type: 'string', default: '0.2,0.3,0.6' },
      rollback: { type: 'string', default: '2,3' },
      draft: { type: 'string', default: '7' },
      candidates: { type: 'string', default: '1,0.07' },
      threads: { type: 'string', default: '2' },
      dtype: { type: 'string', default: 'auto' },
      outputs: { type: 'string' }
    }
  })
  if (!values.data) throw new Error('--data or TREFOIL_DATA is missing; it names the folder of the sets')
  if (!Object.hasOwn(PAIRS, values.model)) throw new Error(`--model is ${values.model}; it takes ${Object.keys(PAIRS).join(', ')}`)
  const pair = PAIRS[values.model]
  const whole = (key, or) => {
    const number = Number(values[key] ?? or)
    if (!Number.isInteger(number) || number < 1) throw new Error(`--${key} is ${values[key]}; it takes a whole number from 1`)
    return number
  }
  const shape = {
    model: values.dtype === 'auto' ? values.model : `${values.model}-${values.dtype}`,
    prompts: whole('prompts', pair.prompts),
    tokens: whole('tokens', pair.tokens),
    threads: whole('threads'),
    dtype: values.dtype
  }
  const settings = settingsOf(values)
  const { load } = await import('../esm/index.js')
  const [large, draft] = [await pair.large(), await pair.little()]
  const options = { threads: shape.threads, contextLength: 1024, dtype: shape.dtype }
  const models = { pair: await load(large, { ...options, draft }), little: await load(draft, options) }
  const sets = {}
  try {
    for (const name of (values.sets ?? Object.keys(pair.sets).join(',')).split(',')) {
      if (!Object.hasOwn(pair.sets, name)) throw new Error(`--sets has ${name}; it takes ${Object.keys(pair.sets).join(', ')}`)
      const [file, read] = pair.sets[name]
      const bytes = await readFile(join(values.data, file))
      const cases = spread(read((file.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString()), shape.prompts)
      const runs = await measure(models, settings, cases, { maxTokens: shape.tokens, warm: pair.warm })
      if (values.outputs) await keep(values.outputs, name, runs, cases)
      sets[name] = summarise(runs, cases)
      print(name, cases.length, sets[name])
    }
  } finally {
    await Promise.all(Object.values(models).map((model) => model.dispose()))
  }
  await draw(shape.model, sets)
  return { shape, sets }
}

function settingsOf(values) {
  const list = (key) => values[key].split(',').map(Number)
  const settings = { large: 'plain', little: 'plain' }
  for (const maxDraft of list('draft')) {
    settings[`speculative ${maxDraft}`] = { type: 'speculative', maxDraft }
    for (const fallback of list('fallback')) {
      for (const rollback of list('rollback')) {
        for (const candidates of list('candidates')) {
          const cumulative = candidates < 1
          const name = cumulative ? `bild ${fallback}+ ${rollback} ${maxDraft} ${candidates}` : `bild ${fallback} ${rollback} ${maxDraft}`
          settings[name] = { type: 'bild', fallback, cumulative, candidates, rollback, maxDraft }
        }
      }
    }
  }
  return settings
}

/** `count` cases, evenly spread over a set. */
function spread(cases, count) {
  const step = Math.max(1, cases.length / count)
  return Array.from({ length: Math.min(count, cases.length) }, (_, at) => cases[Math.floor(at * step)])
}

/** Every prompt by every setting: texts, times, counts and the log-probabilities of the tokens under the large model. */
async function measure(models, settings, cases, { maxTokens, warm }) {
  const names = Object.keys(settings)
  const runs = Object.fromEntries(names.map((name) => [name, []]))
  const write = async (model, prompt, decoding) => {
    const start = performance.now()
    const generation = model.generate(prompt, { decoding, maxTokens, logprobs: true })
    const logprobs = []
    for await (const { tokens } of generation) logprobs.push(...tokens.map(({ logprob }) => logprob))
    const { text, stats, finishReason } = await generation.result
    return { text, stats, logprobs, ended: finishReason === 'stop', ms: performance.now() - start }
  }
  for (const [at, { prompt }] of [...cases.slice(0, warm), ...cases].entries()) {
    for (let turn = 0; turn < names.length; turn += 1) {
      const name = names[(at + turn) % names.length]
      const found = await write(name === 'little' ? models.little : models.pair, prompt, settings[name])
      if (name === 'little') found.logprobs = (await write(models.pair, prompt, JUDGED)).logprobs
      if (at >= Math.min(warm, cases.length)) runs[name].push(found)
    }
  }
  return runs
}

function summarise(runs, cases) {
  const total = (list, value) => list.reduce((sum, found) => sum + value(found), 0)
  const texts = (list) => list.map(({ text }) => text)
  const known = cases.every(({ reference }) => reference !== undefined)
  const quality = (list) =>
    known ? bleu(texts(list), cases.map(({ reference }) => reference)) : rougeL(texts(list), texts(runs.large))
  const own = quality(runs.large)
  return Object.entries(runs).map(([name, list]) => {
    // An end token takes a call as well, so that a text counts one token more than it shows.
    const tokens = total(list, ({ stats, ended }) => stats.tokens + Number(ended))
    const share = (key) => total(list, ({ stats }) => stats[key]) / tokens
    const logprobs = list.flatMap((found) => found.logprobs)
    const score = quality(list)
    return {
      name,
      tokens,
      metric: known ? 'BLEU' : 'ROUGE-L',
      score,
      ofLarge: score / own,
      sameText: list.filter(({ text }, at) => text === runs.large[at].text).length / list.length,
      perplexity: Math.exp(-logprobs.reduce((sum, value) => sum + value, 0) / logprobs.length),
      largeCalls: name === 'little' ? 0 : share('steps'),
      littleCalls: name === 'little' ? share('steps') : share('draftForwards'),
      fallbacks: share('fallbacks'),
      rollbacks: share('rollbacks'),
      ms: total(list, ({ ms }) => ms),
      // Texts differ in length, so that times are compared a text and a token.
      speed: total(runs.large, ({ ms }) => ms) / total(list, ({ ms }) => ms),
      decodeSpeed: total(runs.large, ({ stats }) => stats.decodeMs) / total(list, ({ stats }) => stats.decodeMs),
      tokenSpeed: perToken(runs.large) / perToken(list)
    }
  })
}

function perToken(list) {
  const sum = (value) => list.reduce((total, found) => total + value(found), 0)
  return sum(({ stats }) => stats.decodeMs) / sum(({ stats, ended }) => stats.tokens + Number(ended))
}

async function keep(folder, set, runs, cases) {
  await mkdir(folder, { recursive: true })
  const write = (name, texts) =>
    writeFile(join(folder, `${set}.${name.replaceAll(' ', '_')}.txt`), `${texts.map((text) => text.replaceAll('\n', ' ')).join('\n')}\n`)
  await write('reference', cases.map(({ reference = '' }) => reference))
  for (const [name, list] of Object.entries(runs)) await write(name, list.map(({ text }) => text))
}

function print(set, count, rows) {
  console.log(`${set}, ${count} prompts; calls, fallbacks and rollbacks a token; times against the large model alone`)
  console.log(
    `  decoding             ${rows[0].metric.padStart(8)}  of large  same text  perplexity  large calls  little calls  fallbacks  rollbacks  end to end  decode  a token`
  )
  for (const row of rows) {
    const columns = [
      [row.score.toFixed(2), 8],
      [`${(100 * row.ofLarge).toFixed(1)}%`, 10],
      [`${(100 * row.sameText).toFixed(1)}%`, 11],
      [row.perplexity.toFixed(2), 12],
      [row.largeCalls.toFixed(3), 13],
      [row.littleCalls.toFixed(3), 14],
      [row.fallbacks.toFixed(3), 11],
      [row.rollbacks.toFixed(3), 11],
      [`${row.speed.toFixed(2)}×`, 12],
      [`${row.decodeSpeed.toFixed(2)}×`, 8],
      [`${row.tokenSpeed.toFixed(2)}×`, 9]
    ]
    console.log(`  ${row.name.padEnd(21)}${columns.map(([text, width]) => text.padStart(width)).join('')}`)
  }
}

/** Quality against the wall clock, solid, and against large calls a token, dashed; a point a setting of BiLD. */
async function draw(model, sets) {
  const folder = new URL('./results/', import.meta.url)
  await mkdir(folder, { recursive: true })
  const series = Object.entries(sets).flatMap(([set, rows]) => {
    // The large model alone is the point where nothing is saved.
    const points = rows.filter(({ name }) => name === 'large' || name.startsWith('bild'))
    return [
      { name: `${set}, wall-clock ratio`, points: points.map(({ speed, ofLarge }) => [speed, ofLarge]) },
      { name: `${set}, large calls a token`, dashed: true, points: points.map(({ largeCalls, ofLarge }) => [largeCalls, ofLarge]) }
    ]
  })
  const low = Math.floor(20 * Math.min(0.95, ...series.flatMap(({ points }) => points.map(([, share]) => share)))) / 20
  const [{ metric }] = Object.values(sets)[0]
  const title = `bild, ${model}: quality against what it costs`
  const picture = plot({ title, x: 'ratio to the large model alone; calls a token', y: `${metric}, share of large`, origin: [0, low], series })
  await writeFile(new URL(`bild-${model}.svg`, folder), picture)
}
