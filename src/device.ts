/** Which of the native addons a model lives in. */

import { DeviceError } from './errors.js'
import { CPU, openCuda, type Binding } from './native.js'
import { probe } from './probe.js'

/** A native addon, and what it is told. */
interface Place {
  readonly binding: Binding
  readonly data: unknown
  /** Why it is the CPU's, where a card was preferred. */
  readonly fallback?: string
}

/**
 * The addon for options of `load`. Where a card may be used it is the one for CUDA, whose engine knows the rest: whether
 * there is a card of that number, and whether the model fits it. What is wrong in options is for the CPU's to say.
 *
 * @throws {DeviceError} when a card is named that can't be used
 */
export async function place(data: unknown, signal: AbortSignal): Promise<Place> {
  const device = deviceOf(data)
  const [asked, ordinal] = /^(?:auto|cuda(?::(\d\d?))?)$/.exec(device ?? '') ?? []
  if (asked === undefined) return { binding: CPU, data }
  const probed = await Promise.race([probe(Number(ordinal ?? 0)), aborted(signal)])
  // Whoever waits for the load hears of the abort.
  if (probed === undefined) return { binding: CPU, data }
  const { failure } = probed
  if (failure === undefined) return { binding: openCuda(probed.package.folder), data }
  const { reason, message } = failure
  if (asked !== 'auto') throw new DeviceError(`options.device is '${asked}'; ${message}`, { reason })
  return { binding: CPU, data: { ...(data as object), device: 'cpu' }, fallback: message }
}

/** What options say of a device; undefined where they can't mean one. */
function deviceOf(data: unknown): string | undefined {
  if (typeof data !== 'object' || data === null || Array.isArray(data)) return undefined
  const device: unknown = (data as { device?: unknown }).device ?? 'auto'
  return typeof device === 'string' ? device : undefined
}

function aborted(signal: AbortSignal): Promise<undefined> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(undefined)
    else signal.addEventListener('abort', () => resolve(undefined), { once: true })
  })
}
