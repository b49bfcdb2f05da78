/**
 * What a step of m rows costs: each product of some models against this machine's memory and arithmetic, and whole
 * models beside llama.cpp on the same file, turn by turn in one run.
 *
 *   npm run bench -- kernels [--models smollm2,qwen2.5-coder-0.5b,qwen2.5-coder-1.5b] [--rounds 7] [--threads 2] [--parts products,models,long,t5]
 *
 * A step scores m tokens behind a prefix of 64, or a long one of 3500; the peer evaluates them in one batch with the scores of
 * all. Prefill is 512 tokens. Figures are medians over rounds; c(m) is t(m) / t(1). The decoder of T5-base's shape, with random weights
 * and a source of 64 tokens, is measured against the roofline: its weights read once, or its arithmetic done, at what the
 * memory and the cores gave in the same round, and the figure is the median of the rounds' ratios; in bfloat16 once more as `dtype: 'bf16'`, with its own arithmetic. A plot of the products' arithmetic against the roofline goes to benches/results/kernels.svg.
 * Parts and models that a call leaves out keep their figures.
 */
import { execFileSync, spawn } from 'node:child_process'
import { mkdir, writeFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { fileURLToPath } from 'node:url'
import { modelPath } from '../scripts/models.mjs'
import { openPeer } from './peer.mjs'
import { plot } from '../esm/tune/plot.js'
import { randomT5, SHAPES, VOCABULARY } from './random-t5.mjs'

const ROWS = [1, 2, 4, 8, 16, 32, 64]
const PREFIX = 64
const LONG = 3500
const PREFILL = 512
const PARTS = ['products', 'models', 'long', 't5']
const ROOT = fileURLToPath(new URL('..', import.meta.url))

export async function run(args, machine) {
  const { values } = parseArgs({
    args,
    options: {
      models: { type: 'string', default: 'smollm2,qwen2.5-coder-0.5b,qwen2.5-coder-1.5b' },
      rounds: { type: 'string', default: '7' },
      threads: { type: 'string', default: '2' },
      parts: { type: 'string', default: PARTS.join() }
    }
  })
  const [rounds, threads] = [values.rounds, values.threads].map(Number)
  const example = (crate, name) => ['run', '--release', '--quiet', '-p', crate, '--example', name, '--']
  const parts = values.parts.split(',')
  const shape = { rounds, threads }
  const result = {}
  if (parts.includes('products')) {
    const table = execFileSync('cargo', [...example('trefoil-kernels', 'roofline'), String(threads), '--json'], {
      cwd: ROOT,
      encoding: 'utf8',
      maxBuffer: 1 << 24
    })
    result.products = { machine, ...JSON.parse(table) }
    printProducts(result.products)
    await mkdir(new URL('./results/', import.meta.url), { recursive: true })
    await writeFile(new URL('./results/kernels.svg', import.meta.url), plot(roofline(result.products)))
  }
  const peer = await openPeer().catch((error) => console.log(`without a peer: ${error.message}`))
  const prefixes = { models: PREFIX, long: LONG }
  for (const part of Object.keys(prefixes).filter((part) => parts.includes(part))) {
    result[part] = {}
    const prefix = prefixes[part]
    for (const name of values.models.split(',')) {
      const path = await modelPath(name)
      const ours = await openSteps([...example('trefoil-models', 'steps'), path, String(threads), String(prefix)])
      const theirs = await peer?.open(path, { threads, contextSize: prefix + 1024 })
      const runs = ROWS.map((rows) => ({ name: rows, ours: () => ours.time(rows), theirs: () => theirs?.step(prefix, rows) }))
      if (part === 'models') {
        runs.push({ name: 'prefill', ours: () => ours.time(`prefill ${PREFILL}`), theirs: () => theirs?.prefill(PREFILL) })
      }
      const times = await compare(runs, rounds)
      ours.end()
      await theirs?.dispose()
      result[part][name] = { machine, shape: { ...shape, prefix, prefill: PREFILL }, times }
      printModel(`${name} behind ${prefix} tokens`, times)
    }
  }
  if (parts.includes('t5')) {
    result.t5 = {}
    const limits = await openSteps([...example('trefoil-kernels', 'roofline'), String(threads), '--serve'])
    // What is stored, and what the engine's `dtype` makes of it.
    for (const [type, dtype] of [['bf16', 'auto'], ['bf16', 'bf16'], ['f32', 'auto']]) {
      const name = dtype === 'auto' ? type : `${type}, dtype ${dtype}`
      const model = await randomT5('t5-base', type)
      const ours = await openSteps([...example('trefoil-models', 'steps'), model, String(threads), String(PREFIX), dtype])
      const times = await againstRoofline(ours, limits, { type, peak: dtype === 'bf16' ? 'bf16' : 'f32' }, rounds)
      ours.end()
      result.t5[name] = { machine, shape: { ...shape, prefix: PREFIX }, ...times }
      printSteps(name, times)
    }
    limits.end()
  }
  return result
}

/** What a run has measured, beside what earlier ones have. */
export function keep(earlier, figures) {
  return Object.fromEntries(PARTS.map((part) => [part, { ...earlier[part], ...figures[part] }]))
}

/** Steps of T5-base's decoder beside the least that its products can take on the machine of these very rounds. */
async function againstRoofline(ours, limits, { type, peak }, rounds) {
  const { d_model, d_kv, d_ff, layers, heads } = SHAPES['t5-base']
  const numbers = layers * (6 * heads * d_kv * d_model + 2 * d_model * d_ff) + VOCABULARY * d_model
  const product = { type, peak, n: numbers, k: 1, bytes: numbers * (type === 'bf16' ? 2 : 4) }
  const asked = { memory: [], [peak]: [] }
  const times = ROWS.map(() => ({ ms: [], ratios: [] }))
  for (let round = -1; round < rounds; round += 1) {
    for (const [at, rows] of ROWS.entries()) {
      // The machine's own measurements have taken the caches and let the threads sleep.
      await ours.time(rows)
      const steps = []
      for (let step = 0; step < 3; step += 1) steps.push(await ours.time(rows))
      const memory = await limits.time('memory')
      const arithmetic = await limits.time(peak)
      if (round < 0) continue
      const ms = median(steps)
      times[at].ms.push(ms)
      // The machine moves threads between cores with and without a cache in common, so each round has its own roof.
      times[at].ratios.push(ms / roof({ bandwidth: memory, peak: { [peak]: arithmetic } }, product, rows))
      asked.memory.push(memory)
      asked[peak].push(arithmetic)
    }
  }
  const bounds = { bandwidth: median(asked.memory), peak: { [peak]: median(asked[peak]) } }
  const steps = ROWS.map((rows, at) => {
    const { ms, ratios } = times[at]
    return { rows, ms: median(ms), times: median(ratios), rounds: ratios.map((ratio) => Number(ratio.toFixed(3))) }
  })
  return { ...bounds, steps }
}

function printSteps(type, { bandwidth, peak, steps }) {
  const list = steps.map(({ rows, ms, times }) => `${rows}: ${ms.toFixed(1)} (${times.toFixed(2)})`)
  const [[kind, rate]] = Object.entries(peak)
  console.log(`T5-base ${type}, memory ${bandwidth.toFixed(1)} GB/s, ${kind} ${rate.toFixed(0)} GMAC/s; ms a step (times the roofline's)  ${list.join('  ')}`)
}

/** A child process that times on request. */
async function openSteps(args) {
  const child = spawn('cargo', args, { cwd: ROOT, stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const next = async () => {
    const { value, done } = await lines.next()
    if (done) throw new Error('the steps program ended early')
    return value
  }
  await next()
  return {
    async time(request) {
      child.stdin.write(`${request}\n`)
      return Number(await next())
    },
    end: () => child.stdin.end()
  }
}

/** Both sides' times of what is run, turn by turn. */
async function compare(runs, rounds) {
  const times = runs.map(() => ({ ours: [], theirs: [] }))
  for (let round = -1; round < rounds; round += 1) {
    for (const [at, run] of runs.entries()) {
      const order = round % 2 === 0 ? ['ours', 'theirs'] : ['theirs', 'ours']
      for (const side of order) {
        const ms = await run[side]()
        // The first round only warms caches and clocks.
        if (round >= 0 && ms !== undefined) times[at][side].push(ms)
      }
    }
  }
  return Object.fromEntries(
    runs.map(({ name }, at) => [name, { ours: median(times[at].ours), theirs: median(times[at].theirs) }])
  )
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted.length > 0 ? sorted[sorted.length >> 1] : undefined
}

function printModel(name, times) {
  console.log(`\n${name}, milliseconds a step (c of m)`)
  for (const [key, { ours, theirs }] of Object.entries(times)) {
    const c = (side, ms) => (key === 'prefill' ? '' : ` (${(ms / times[1][side]).toFixed(2)})`)
    const peer = theirs === undefined ? '' : `   peer ${theirs.toFixed(1)}${c('theirs', theirs)}   ${(theirs / ours).toFixed(2)}×`
    console.log(`  ${key.padStart(7)}  ${ours.toFixed(1)}${c('ours', ours)}${peer}`)
  }
}

function printProducts({ bandwidth, peak, rows, products, models }) {
  console.log(`memory ${bandwidth.toFixed(1)} GB/s; int8 ${peak.int8.toFixed(0)} and f32 ${peak.f32.toFixed(0)} GMAC/s`)
  for (const product of products) {
    const { name, type, n, k, ms } = product
    const bound = ms.map((_, at) => roof({ bandwidth, peak }, product, rows[at]))
    const shares = ms.map((time, at) => `${rows[at]}: ${time.toFixed(3)} (${Math.round((100 * bound[at]) / time)}%)`)
    console.log(`${name} ${type} [${n}, ${k}], ms (share of the roofline)  ${shares.join('  ')}`)
  }
  for (const { name, ms } of models) console.log(`all products of ${name}, c(m)  ${ms.map((time, at) => `${rows[at]}: ${(time / ms[0]).toFixed(2)}`).join('  ')}`)
}

/** The least milliseconds that a product can take: its bytes read, or its arithmetic done. */
function roof({ bandwidth, peak }, { type, peak: kind, n, k, bytes }, rows) {
  const rate = peak[kind ?? (['f32', 'f16', 'bf16'].includes(type) ? 'f32' : 'int8')]
  return 1e3 * Math.max(bytes / (bandwidth * 1e9), (rows * n * k) / (rate * 1e9))
}

/** GMAC/s by rows: measured, and the machine's bound for the largest product. */
function roofline({ bandwidth, peak, rows, products }) {
  const shown = products.filter(({ plotted }) => plotted)
  const series = shown.flatMap((product) => {
    const rate = (ms, at) => [rows[at], (rows[at] * product.n * product.k) / (ms * 1e6)]
    return [
      { name: `${product.name} ${product.type}`, points: product.ms.map(rate) },
      { name: 'its roofline', dashed: true, points: rows.map((m, at) => rate(roof({ bandwidth, peak }, product, m), at)) }
    ]
  })
  return { title: 'Products of m rows against the roofline', x: 'rows', y: 'GMAC/s', series }
}
