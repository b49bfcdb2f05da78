/**
 * Runs one bench and keeps its figures: `npm run bench -- NAME [options]`.
 *
 * Prints what the figures depend on (machine, load, commit), then the bench's own table, and writes
 * both to `benches/results/NAME.json`.
 */
import { execFileSync } from 'node:child_process'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { availableParallelism, cpus, loadavg, totalmem } from 'node:os'
import { fileURLToPath } from 'node:url'

const BENCHES = {
  plain: './plain.mjs',
  auto: './auto.mjs',
  kernels: './kernels.mjs',
  memory: './memory.mjs',
  lookahead: './lookahead.mjs',
  bild: './bild.mjs',
  'bild-checks': './bild-checks.mjs',
  exact: './exact.mjs',
  pid: './pid.mjs',
  multiwoz: './multiwoz.mjs'
}

/** What every figure must be read beside. */
function circumstances() {
  const git = (...args) => execFileSync('git', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
  let commit = 'unknown'
  try {
    const changed = git('status', '--porcelain', '--untracked-files=no') ? ' with changes' : ''
    commit = git('rev-parse', '--short', 'HEAD') + changed
  } catch {
    // Outside a clone there is no commit to name.
  }
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    memoryGB: Math.round(totalmem() / 1e9),
    loadBefore: Number(loadavg()[0].toFixed(2)),
    node: process.version,
    commit,
    date: new Date().toISOString()
  }
}

/** What an earlier run has written; nothing where there was none. */
async function earlier(file) {
  try {
    return JSON.parse(await readFile(file, 'utf8'))
  } catch (error) {
    if (error.code === 'ENOENT') return {}
    throw error
  }
}

async function main([name, ...args]) {
  if (!Object.hasOwn(BENCHES, name ?? '')) {
    throw new Error(`usage: npm run bench -- NAME [options]; benches: ${Object.keys(BENCHES).join(', ')}`)
  }
  const machine = circumstances()
  console.log(`${machine.cpu}, ${machine.cores} cores, ${machine.memoryGB} GB, Node ${machine.node}, commit ${machine.commit}`)
  if (machine.loadBefore > 0.5) console.log(`load average ${machine.loadBefore}: something else is running, so read only the ratios`)
  const bench = await import(BENCHES[name])
  const figures = await bench.run(args, machine)
  const folder = new URL('./results/', import.meta.url)
  await mkdir(folder, { recursive: true })
  const file = new URL(`${[name, ...(figures.shape?.model ? [figures.shape.model] : [])].join('-')}.json`, folder)
  // A bench of many parts can be run one part at a time: each names the circumstances of its own figures.
  const kept = bench.keep ? await bench.keep(await earlier(file), figures) : { machine, ...figures }
  await writeFile(file, `${JSON.stringify(kept, null, 2)}\n`)
  console.log(`written to ${fileURLToPath(file)}`)
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`bench: ${error.message}`)
  process.exitCode = 1
})
