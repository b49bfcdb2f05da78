/** `trefoil doctor`: what this machine has for models to run on, and what it lacks. */

import { arch, platform, stdout, version as node } from 'node:process'

import { cachedModels, cacheFolder, type CachedModel } from '../cache.js'
import { CPU } from '../native.js'
import { probe, type Probe } from '../probe.js'
import { command, type Command } from './command.js'

const HELP = `Usage: trefoil doctor [options]

Says what models can run on here: the CPU and its instructions, the memory, the models in the cache folder, and whether
CUDA can be used, or why not. Nothing is loaded; a card is tried out in a process of its own.

  --json                      print it as JSON
  --help                      print this

  TREFOIL_MODELS              the cache folder; else trefoil in the user's cache folder
  TREFOIL_CUDA_PACKAGE        the folder of the package trefoil-cuda; else where it is installed
  TREFOIL_NCCL                NCCL's library, for several cards; else libnccl.so.2 where the system finds it
`

const OPTIONS = { json: { type: 'boolean' } } as const

const ABOUT = { summary: 'says what models can run on here, and why not on a card', help: HELP, options: OPTIONS }

/** All that is known. */
interface Findings {
  readonly version: string
  readonly node: string
  readonly platform: string
  readonly cpu: { readonly instructions: string; readonly threads: number }
  /** Bytes, where the system says. */
  readonly memory: { readonly total?: number; readonly available?: number }
  readonly cache: { readonly folder: string; readonly models: readonly CachedModel[] }
  readonly cuda: Probe
}

/** The command. */
export const doctor: Command = command(ABOUT, async ([more], { json }) => {
  if (more !== undefined) throw new Error(`'${more}' is one argument too many`)
  const findings = await look()
  stdout.write(json ? `${JSON.stringify(findings)}\n` : report(findings))
})

async function look(): Promise<Findings> {
  const { version, instructions, threads, memory, available } = CPU.machine()
  const [models, cuda] = await Promise.all([cachedModels(), probe(0)])
  return {
    version,
    node,
    platform: `${platform}-${arch}`,
    cpu: { instructions, threads },
    memory: { ...(memory === undefined ? {} : { total: memory }), ...(available === undefined ? {} : { available }) },
    cache: { folder: cacheFolder(), models },
    cuda
  }
}

function report({ version, node, platform, cpu, memory, cache, cuda }: Findings): string {
  const { failure, driver, cards, package: found } = cuda
  const rows: [string, string][] = [
    ['trefoil', `${version}, Node ${node}, ${platform}`],
    ['CPU', `${cpu.instructions}, ${count(cpu.threads, 'thread')}`],
    ['memory', `${size(memory.total)}, ${size(memory.available)} free`],
    ['cache', `${cache.folder}, ${count(cache.models.length, 'model')}`],
    ...cache.models.map(({ name, bytes }): [string, string] => ['', `${name}, ${size(bytes)}`]),
    ['CUDA', failure ? `can't be used: ${failure.message}` : `can be used, with ${size(cuda.available)} free`],
    ...(failure ? [] : [['graphs', graphs(cuda.graphFailure)] satisfies [string, string]]),
    ['package', found ? `trefoil-cuda ${found.version} in ${found.folder}` : 'not installed'],
    ['driver', driver === undefined ? 'not known' : `runs CUDA ${driver}`],
    ...cards.map(({ name, capability, memory }, at): [string, string] => [
      `cuda:${at}`,
      `${name}, compute capability ${capability}, ${size(memory)}`
    ])
  ]
  const width = Math.max(...rows.map(([name]) => name.length))
  return rows.map(([name, said]) => `${name.padEnd(width)}  ${said}\n`).join('')
}

function graphs(failure: string | undefined): string {
  return failure === undefined ? 'small steps start as one' : `small steps start launch by launch: ${failure}`
}

function count(n: number, what: string): string {
  return `${n} ${what}${n === 1 ? '' : 's'}`
}

function size(bytes: number | undefined): string {
  if (bytes === undefined) return 'unknown'
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(bytes >= 1e7 ? 0 : 1)} MB`
}
