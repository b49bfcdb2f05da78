/**
 * What a model takes of memory in a process of its own: at its peak, and after `dispose()`.
 *
 *   npm run bench -- memory [--models a,b] [--tokens 48] [--context 2048] [--threads 2]
 *
 * Resident bytes of the whole process, Node's included. The goal is the file's bytes and 15% of them, 100 MB and the caches,
 * of which the bound here leaves out the last.
 */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { stat } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { MODELS, modelPath } from '../scripts/models.mjs'

const file = fileURLToPath(import.meta.url)

export async function run(args) {
  const { values } = parseArgs({
    args,
    options: {
      models: { type: 'string', default: Object.keys(MODELS).join(',') },
      tokens: { type: 'string', default: '48' },
      context: { type: 'string', default: '2048' },
      threads: { type: 'string', default: '2' }
    }
  })
  const [tokens, context, threads] = ['tokens', 'context', 'threads'].map((key) => {
    const number = Number(values[key])
    if (!Number.isInteger(number) || number < 1) throw new Error(`--${key} is ${values[key]}; it takes a whole number from 1`)
    return number
  })
  const shape = { tokens, context, threads }
  const models = {}
  console.log(`${tokens} tokens in a context of ${context}, ${threads} threads; MB, Node's included\n`)
  for (const name of values.models.split(',')) {
    const path = await modelPath(name)
    const child = fork(file, [path, JSON.stringify(shape)])
    const ended = once(child, 'exit')
    const [found] = await Promise.race([once(child, 'message'), ended.then(([code]) => [{ code }])])
    await ended
    if (!found.peak) throw new Error(`${name} was not measured: its process ended with ${found.code}`)
    const { size } = await stat(path)
    models[name] = { file: size, bound: 1.15 * size + 100e6, ...found }
    const mb = (bytes) => String(Math.round(bytes / 1e6)).padStart(5)
    console.log(
      `${name.padEnd(20)} file ${mb(size)}  Node ${mb(found.node)}  peak ${mb(found.peak)} (bound ${mb(models[name].bound)})` +
        `  before dispose() ${mb(found.loaded)}  after ${mb(found.disposed)}`
    )
  }
  return { shape, models }
}

/** In a process of its own: loads one model, writes with it and lets it go. */
async function measure(path, { tokens, context, threads }) {
  const resident = () => process.memoryUsage.rss()
  const node = resident()
  const { load } = await import('../esm/index.js')
  const model = await load(path, { device: 'cpu', threads, contextLength: context })
  await model.generate('Once upon a time', { decoding: 'plain', maxTokens: tokens }).text()
  const loaded = resident()
  await model.dispose()
  const disposed = resident()
  // Of this process, in units of 1024 bytes.
  process.send({ node, loaded, disposed, peak: process.resourceUsage().maxRSS * 1024 }, () => process.disconnect())
}

if (process.argv[1] === file) await measure(process.argv[2], JSON.parse(process.argv[3]))
