/** Whether a card can be used, found out in a process of its own: loading CUDA can fail, hang, or end the process. */

import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { env, execPath } from 'node:process'

import type { DeviceReason } from './errors.js'
import { CPU, findCuda, PROBE, type NativeProbe } from './native.js'

/** A CUDA package that is installed. */
export interface CudaPackage {
  readonly folder: string
  readonly version: string
}

/** What is known of the cards of this machine. */
interface Cards {
  /** The newest CUDA that the driver runs. */
  readonly driver?: string
  readonly cards: NativeProbe['cards']
}

/** A card that can be used, with the bytes that a model may take there; or why it can't. */
export type Probe =
  | (Cards & {
      readonly package: CudaPackage
      readonly available: number
      /** Why small steps start launch by launch there, where they do not start as one. */
      readonly graphFailure?: string
      readonly failure?: undefined
    })
  | (Cards & { readonly package?: CudaPackage; readonly failure: { readonly reason: DeviceReason; readonly message: string } })

/** Milliseconds that a probe may take: a driver that wakes eight cards up needs some seconds. */
const LIMIT = 30_000

/** A probe that was begun, how many wait for it, and what ends it. */
interface Begun {
  readonly probed: Promise<Probe>
  readonly stop: AbortController
  waiting: number
}

const known = new Map<string, Begun>()

/** Tries the card of this ordinal out, once a process; gives nothing once the signal is aborted. */
export async function probe(ordinal: number): Promise<Probe>
export async function probe(ordinal: number, signal: AbortSignal): Promise<Probe | undefined>
export async function probe(ordinal: number, signal?: AbortSignal): Promise<Probe | undefined> {
  const found = findCuda()
  if (!found) return failed('package', 'the package trefoil-cuda is not installed')
  const key = `${ordinal} ${found.folder}`
  const begun = known.get(key) ?? begin(found, ordinal)
  known.set(key, begun)
  begun.waiting += 1
  const over = new AbortController()
  const left = signal && once(signal, 'abort', { signal: over.signal }).then(() => undefined, () => undefined)
  const probed = signal?.aborted ? undefined : await (left ? Promise.race([begun.probed, left]) : begun.probed)
  over.abort()
  begun.waiting -= 1
  if (probed === undefined && begun.waiting === 0) {
    // Nobody wants to know any more, and a process that hangs would keep this one alive.
    begun.stop.abort()
    known.delete(key)
  }
  return probed
}

function begin(found: CudaPackage, ordinal: number): Begun {
  const stop = new AbortController()
  return { probed: probeBy(found, ordinal, LIMIT, stop.signal), stop, waiting: 0 }
}

/** Tries the card of this ordinal out by a CUDA package, in at most `limit` milliseconds. */
export async function probeBy(found: CudaPackage, ordinal: number, limit: number = LIMIT, stop?: AbortSignal): Promise<Probe> {
  const { version } = CPU.machine()
  if (found.version === version) return { ...(await ask(found, ordinal, limit, stop)), package: found }
  const message = `the package trefoil-cuda has version ${found.version}; allowed: ${version}, as trefoil has`
  return { ...failed('version', message), package: found }
}

function ask(found: CudaPackage, ordinal: number, limit: number, stop?: AbortSignal): Promise<Probe> {
  // Electron starts itself once more unless it is told not to; options of Node are meant for the caller's process.
  const variables = { ...env, ELECTRON_RUN_AS_NODE: '1', NODE_OPTIONS: '' }
  const how = { env: variables, timeout: limit, killSignal: 'SIGKILL', windowsHide: true, ...(stop && { signal: stop }) } as const
  return new Promise((resolve) => {
    execFile(execPath, [PROBE, found.folder, String(ordinal)], how, (error, stdout) => {
      const answer = answerOf(stdout)
      const ending = error?.signal ?? `code ${error?.code ?? 0}`
      if (answer) resolve(read(answer, found))
      else if (error?.killed) resolve(failed('timeout', `the card did not answer within ${limit / 1000} s`))
      else resolve(failed('crash', `the process that tried the card out ended with ${ending}`))
    })
  })
}

type Answer = NativeProbe | { readonly error: string }

/** What the probe printed; undefined where it did not come to that. */
function answerOf(stdout: string): Answer | undefined {
  try {
    return JSON.parse(stdout) as Answer
  } catch {
    return undefined
  }
}

function read(answer: Answer, found: CudaPackage): Probe {
  if ('error' in answer) return loadFailed(answer.error)
  const { driver, cards, available, graphFailure, failure } = answer
  const there = driver === undefined ? { cards } : { driver, cards }
  const graphs = graphFailure === undefined ? {} : { graphFailure }
  if (available !== undefined) return { ...there, package: found, available, ...graphs }
  const message = failure ? [failure.message, ...failure.causes].join(': ') : 'the card can’t be used'
  return { ...failed((failure?.reason ?? 'driver') as DeviceReason, message), ...there }
}

/** Why an addon could not be loaded, from what the system's loader says. */
function loadFailed(error: string): Probe {
  if (/undefined symbol: cu[A-Z]/.test(error)) return failed('driver-too-old', `the NVIDIA driver is too old: ${error}`)
  if (/\b(?:libcuda\.so|nvcuda\.dll)/.test(error)) return failed('driver', `there is no NVIDIA driver: ${error}`)
  return failed('library', `the package trefoil-cuda can't be loaded: ${error}`)
}

function failed(reason: DeviceReason, message: string): Probe {
  return { cards: [], failure: { reason, message } }
}
