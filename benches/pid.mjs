/**
 * Prompt-in-decoder beside its two baselines, on the same kernels.
 *
 *   npm run bench -- pid [--models t5-small,t5-base,dst] [--prompts 1,5,30] [--lengths 128,512,1024] [--batch 1,8]
 *                        [--rounds 3] [--pie 2] [--memory 6] [--threads 2] [--short]
 *
 * U prompts are asked of documents of n tokens, `batch` documents at once, answers of 8 tokens. PIE writes the prompt
 * into the document and so encodes and answers once a prompt; the expanded form encodes once and gives each prompt its
 * own copy of the cross-attention's keys and values. PIE's runs are alike and independent: `--pie` of them are timed a
 * round and stand for all. A round decodes three times by each form, in turn, and takes the least time; ratios are
 * medians over rounds, and above 1 prompt-in-decoder is faster. Where the expanded form would need more than `--memory`
 * GB it is left out.
 *
 * t5-small and t5-base have the published shapes and random weights, made in the cache folder. dst is the embedded
 * dialogue model on MultiWOZ turns below TREFOIL_DATA with 30 slots; it is left out of the default without that folder.
 * `--short` measures t5-small at n = 512 alone.
 */
import { execFileSync, spawn } from 'node:child_process'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { documentOf, MODEL, promptOf, slots, turns } from './dialogues.mjs'
import { plot } from '../esm/tune/plot.js'
import { generator, randomT5, SHAPES } from './random-t5.mjs'

const TOKENS = 8
const PROMPT = 5
const ROOT = fileURLToPath(new URL('..', import.meta.url))

export async function run(args) {
  const { values } = parseArgs({
    args,
    options: {
      models: { type: 'string' },
      prompts: { type: 'string', default: '1,5,30' },
      lengths: { type: 'string' },
      batch: { type: 'string' },
      rounds: { type: 'string', default: '3' },
      pie: { type: 'string', default: '2' },
      memory: { type: 'string', default: '6' },
      threads: { type: 'string', default: '2' },
      short: { type: 'boolean', default: false }
    }
  })
  const { short } = values
  const whole = (key, text) => text.split(',').map((item) => {
    const number = Number(item)
    if (!Number.isInteger(number) || number < 1) throw new Error(`--${key} has '${item}'; it takes whole numbers from 1`)
    return number
  })
  const [rounds, pie, memory, threads] = ['rounds', 'pie', 'memory', 'threads'].map((key) => whole(key, values[key])[0])
  const grid = {
    prompts: whole('prompts', values.prompts),
    lengths: whole('lengths', values.lengths ?? (short ? '512' : '128,512,1024')),
    batch: whole('batch', values.batch ?? (short ? '1' : '1,8'))
  }
  const all = [...Object.keys(SHAPES), 'dst']
  const names = (values.models ?? (short ? 't5-small' : all.filter((name) => name !== 'dst' || process.env.TREFOIL_DATA).join())).split(',')
  const unknown = names.find((name) => !all.includes(name))
  if (unknown !== undefined) throw new Error(`--models has '${unknown}'; it takes ${all.join(', ')}`)
  const models = {}
  for (const name of names) models[name] = await measure(name, grid, { rounds, pie, bytes: memory * 1e9, threads })
  await draw(models)
  return { shape: { tokens: TOKENS, rounds, pie, threads }, models }
}

async function measure(name, grid, { rounds, pie, bytes, threads }) {
  const folder = name === 'dst' ? MODEL : await randomT5(name)
  const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'))
  const inputs = name === 'dst' ? await dialogues(grid) : random(config, grid)
  const engine = start(folder, threads)
  const rows = []
  console.log(`\n${name}\n   n  batch   U   PIE  decode  expanded  a step  PiD ms  cross MB  expanded  encoder GFLOP  PIE`)
  try {
    for (const { documents, prompts } of inputs) {
      const copies = documents.reduce((sum, { length }) => sum + crossBytes(config, length), 0) * prompts.length
      const figures = await engine.ask({ documents, prompts, tokens: TOKENS, rounds, pie, expanded: copies <= bytes })
      const row = summarise(config, documents, prompts, figures)
      rows.push(row)
      print(row)
    }
  } finally {
    engine.stop()
  }
  return rows
}

/** Documents and prompts of every cell of the grid, with tokens drawn from a seed. */
function random({ vocab_size: size, eos_token_id: end }, { prompts, lengths, batch }) {
  const next = generator(11)
  const tokens = (count) => Array.from({ length: count }, () => 2 + Math.floor(next() * (size - 2)))
  const cells = lengths.flatMap((n) => batch.flatMap((count) => prompts.map((U) => ({ n, count, U }))))
  return cells.map(({ n, count, U }) => ({
    documents: Array.from({ length: count }, () => [...tokens(n - 1), end]),
    prompts: Array.from({ length: U }, () => tokens(PROMPT))
  }))
}

/** The longest of some MultiWOZ turns, and the first slots. */
async function dialogues({ prompts, batch }) {
  const { load } = await import(new URL('../esm/index.js', import.meta.url).href)
  const model = await load(MODEL)
  try {
    const some = (await turns()).slice(0, 400)
    const documents = await Promise.all(some.map(async (turn) => model.tokenize(await documentOf(model, turn))))
    documents.sort((a, b) => b.length - a.length)
    const ends = (await model.tokenize('')).length
    const asked = await Promise.all((await slots()).map(async (slot) => (await model.tokenize(promptOf(slot))).slice(0, -ends)))
    return batch.flatMap((count) => prompts.map((U) => ({ documents: documents.slice(0, count), prompts: asked.slice(0, U) })))
  } finally {
    await model.dispose()
  }
}

/** Builds the engine's example that does the measuring, and gives its path. */
function build() {
  // As `npm run build` and `npm test` do, so that dependencies are not compiled again for fewer of their features.
  const cargo = ['build', '--release', '--workspace', '--example', 'pid', '--message-format', 'json']
  const output = execFileSync('cargo', cargo, { cwd: ROOT, encoding: 'utf8', maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'inherit'] })
  const messages = output.trimEnd().split('\n').map((line) => JSON.parse(line))
  return messages.find(({ executable, target }) => executable && target.name === 'pid').executable
}

/** Runs the example: a line in and a line out for each cell. */
function start(folder, threads) {
  const child = spawn(build(), [folder, String(threads)], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = new Promise((_, reject) => {
    child.once('error', reject)
    child.once('close', (code) => reject(new Error(`the example ended with code ${code}`)))
  })
  ended.catch(() => {})
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  return {
    async ask(task) {
      child.stdin.write(`${JSON.stringify(task)}\n`)
      const { value } = await Promise.race([lines.next(), ended])
      return value === undefined ? await ended : JSON.parse(value)
    },
    stop: () => child.stdin.end()
  }
}

function summarise(config, documents, prompts, figures) {
  const { encode, pid, expanded, pie_encode: pieEncode, pie_decode: pieDecode } = figures
  const U = prompts.length
  const ratio = (over, under) => median(over.map((value, at) => value / under[at]))
  const sum = (...lists) => lists[0].map((_, at) => lists.reduce((total, list) => total + list[at], 0))
  const whole = sum(encode, pid.decode)
  const lengths = documents.map(({ length }) => length)
  const sources = lengths.flatMap((n) => prompts.map(({ length }) => n + length))
  const flops = (list) => list.reduce((total, n) => total + encoderFlops(config, n), 0)
  // What the engine counted, against what the shapes say.
  agree('tokens encoded', figures.encoded, total(lengths))
  agree('tokens encoded by PIE', figures.pie_encoded, total(sources))
  agree('bytes of keys and values', pid.cross_bytes, total(lengths.map((n) => crossBytes(config, n))))
  if (expanded) agree('bytes of expanded keys and values', expanded.cross_bytes, U * pid.cross_bytes)
  return {
    documentTokens: Math.round(total(lengths) / lengths.length),
    batch: documents.length,
    prompts: U,
    ms: { encode: 1e3 * median(encode), decode: 1e3 * median(pid.decode), step: 1e3 * median(pid.step) },
    overPie: ratio(sum(pieEncode, pieDecode), whole),
    overPieDecode: ratio(pieDecode, pid.decode),
    overExpanded: expanded && ratio(sum(encode, expanded.copy, expanded.decode), whole),
    overExpandedDecode: expanded && ratio(expanded.decode, pid.decode),
    overExpandedStep: expanded && ratio(expanded.step, pid.step),
    encoderRuns: { pid: documents.length, pie: documents.length * U },
    encoderFlops: { pid: flops(lengths), pie: flops(sources) },
    crossBytes: { pid: pid.cross_bytes, expanded: U * pid.cross_bytes }
  }
}

/** Operations of one encoding, two a multiplication and addition, the keys and values of cross-attention included. */
function encoderFlops({ d_model, d_kv, num_heads, d_ff, num_layers, num_decoder_layers, feed_forward_proj }, n) {
  const inner = num_heads * d_kv
  const feed = (feed_forward_proj.startsWith('gated') ? 3 : 2) * d_model * d_ff
  return 2 * n * (num_layers * (4 * d_model * inner + feed + 2 * n * inner) + num_decoder_layers * 2 * d_model * inner)
}

/** Bytes of one copy of keys and values: tiles of 32 positions, in f32. */
function crossBytes({ d_kv, num_heads, num_decoder_layers }, n) {
  return num_decoder_layers * 2 * num_heads * d_kv * Math.ceil(n / 32) * 32 * 4
}

function agree(what, counted, expected) {
  if (counted !== expected) throw new Error(`${what}: counted ${counted}, expected ${expected}`)
}

function total(values) {
  return values.reduce((sum, value) => sum + value, 0)
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b)
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2
}

function print({ documentTokens, batch, prompts, ms, overPie, overPieDecode, ...rest }) {
  const times = (value) => (value ? `${value.toFixed(2)}×` : '–')
  const cells = [
    [documentTokens, 5],
    [batch, 6],
    [prompts, 4],
    [times(overPie), 7],
    [times(overPieDecode), 8],
    [times(rest.overExpandedDecode), 9],
    [times(rest.overExpandedStep), 8],
    [(ms.encode + ms.decode).toFixed(0), 8],
    [(rest.crossBytes.pid / 1e6).toFixed(1), 9],
    [(rest.crossBytes.expanded / 1e6).toFixed(0), 9],
    [(rest.encoderFlops.pid / 1e9).toFixed(1), 14],
    [(rest.encoderFlops.pie / 1e9).toFixed(0), 6]
  ]
  console.log(cells.map(([text, width]) => String(text).padStart(width)).join(''))
}

async function draw(models) {
  const series = Object.entries(models).flatMap(([name, rows]) => {
    const lengths = [...new Set(rows.filter(({ batch }) => batch === 1).map(({ documentTokens }) => documentTokens))]
    return lengths.flatMap((n) => {
      const line = rows.filter(({ batch, documentTokens }) => batch === 1 && documentTokens === n)
      const points = (key) => line.filter((row) => row[key]).map((row) => [row.prompts, row[key]])
      return [
        { name: `${name} ${n} / PIE`, points: points('overPie') },
        { name: `${name} ${n} / expanded`, dashed: true, points: points('overExpandedStep') }
      ]
    })
  })
  await mkdir(new URL('./results/', import.meta.url), { recursive: true })
  const y = 'end to end over PIE (solid), a step over expanded (dashed)'
  const svg = plot({ title: 'Prompt-in-decoder, one document', x: 'prompts a document', y, series })
  await writeFile(new URL('./results/pid.svg', import.meta.url), svg)
}
