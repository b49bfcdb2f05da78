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

/** A card that an option names. */
interface Card {
  readonly option: string
  readonly name: string
  readonly ordinal: number
}

/**
 * The addon for options of `load`. Where a card may be used it is the one for CUDA, whose engine knows the rest: whether
 * there is a card of that number, and whether the model fits it. What is wrong in options is for the CPU's to say.
 *
 * @throws {DeviceError} when a card is named that can't be used
 */
export async function place(data: unknown, signal: AbortSignal): Promise<Place> {
  const { automatic, cards } = devicesOf(data)
  if (!automatic && cards.length === 0) return { binding: CPU, data }
  const ordinals = [...(automatic ? [0] : []), ...cards.map(({ ordinal }) => ordinal)]
  const probed = await Promise.all(ordinals.map((ordinal) => probe(ordinal, signal)))
  const probes = probed.filter((probe) => probe !== undefined)
  // Whoever waits for the load hears of the abort.
  if (probes.length < probed.length) return { binding: CPU, data }
  const [first, named] = automatic ? [probes[0], probes.slice(1)] : [undefined, probes]
  for (const [at, { option, name }] of cards.entries()) {
    const failure = named[at]?.failure
    if (failure) throw new DeviceError(`${option} is '${name}'; ${failure.message}`, { reason: failure.reason })
  }
  const found = probes.find(({ failure }) => failure === undefined)?.package
  const binding = found ? openCuda(found.folder) : CPU
  if (first?.failure === undefined) return { binding, data }
  return { binding, data: { ...(data as object), device: 'cpu' }, fallback: first.failure.message }
}

/** The cards that options name, and whether the model takes one where it can; nothing where options are not what they should be. */
function devicesOf(data: unknown): { automatic: boolean; cards: Card[] } {
  const nothing = { automatic: false, cards: [] }
  if (!isObject(data)) return nothing
  const { device, draft } = data
  const own: unknown = device ?? 'auto'
  const little: unknown = (isObject(draft) ? draft['device'] : undefined) ?? 'cpu'
  const all = [
    ...(Array.isArray(own) ? own.map((name, at) => cardOf(`options.device[${at}]`, name)) : []),
    ...(Array.isArray(own) || own === 'auto' || own === 'cpu' ? [] : [cardOf('options.device', own)]),
    ...(little === 'cpu' ? [] : [cardOf('options.draft.device', little)])
  ]
  const cards = all.filter((card) => card !== undefined)
  return cards.length < all.length ? nothing : { automatic: own === 'auto', cards }
}

function cardOf(option: string, name: unknown): Card | undefined {
  const [matched, ordinal = '0'] = typeof name === 'string' ? (/^cuda(?::(\d\d?))?$/.exec(name) ?? []) : []
  return matched === undefined ? undefined : { option, name: matched, ordinal: Number(ordinal) }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
