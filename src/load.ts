/** Loading: find the model's files, then let the engine read them. */

import { existsSync } from 'node:fs'
import { join } from 'node:path'

import { cacheFolder } from './cache.js'
import { place } from './device.js'
import { AbortedError } from './errors.js'
import { errorOf } from './failure.js'
import { fetchModel, hubId } from './hub.js'
import { LoadedModel, type Model } from './model.js'
import { refuse, takeListener, takeSignal, type LoadOptions, type LoadProgress } from './options.js'

/**
 * Loads a model.
 *
 * @param source a folder with `config.json`, `tokenizer.json` and safetensors; a `.gguf` file; or a model on the hub,
 *   `owner/name` or `owner/name:file.gguf`, which is downloaded once into the cache folder (`TREFOIL_MODELS`, or
 *   `trefoil` in the user's cache folder). What exists on disk is never looked for on the hub.
 * @throws {InvalidOptionError} when an option is unknown or has a value that is not allowed
 * @throws {ModelLoadError} when the files are missing, damaged or not supported
 * @throws {DeviceError} when `device` names a card that can't be used
 * @throws {OutOfMemoryError} when weights and cache would not fit the memory limit
 * @throws {DownloadError} when the hub does not have or give the model
 * @throws {AbortedError} when the signal ended the load
 */
export async function load(source: string, options?: LoadOptions): Promise<Model> {
  if (typeof source !== 'string') refuse('source', source, 'a folder, a .gguf file or a hub id')
  const { signal, data: rest } = takeSignal(options)
  const { onProgress, data } = takeListener(rest)
  const offline: unknown = options?.offline
  if (offline !== undefined && typeof offline !== 'boolean') refuse('options.offline', offline, 'true or false')
  const stop = new AbortController()
  const abort = (): void => stop.abort(signal?.reason)
  if (signal?.aborted) abort()
  else signal?.addEventListener('abort', abort, { once: true })
  let thrown: { error: unknown } | undefined
  const heard = (progress: LoadProgress): void => {
    // What the listener throws may not reach the engine's callback: nobody could catch it there.
    try {
      onProgress?.(progress)
    } catch (error) {
      thrown ??= { error }
      stop.abort(error)
    }
  }
  try {
    const find = async (name: string): Promise<string> => {
      const id = existsSync(name) ? undefined : hubId(name)
      return id ? fetchModel(id, offline === true, heard, stop.signal) : name
    }
    const path = await find(source)
    return await open(path, withCostCache(await withDraft(data, find)), heard, stop.signal)
  } catch (error) {
    throw thrown ? thrown.error : error
  } finally {
    signal?.removeEventListener('abort', abort)
  }
}

/** Finds the draft model's files, where it is a model of its own; what names none is for the engine to refuse. */
async function withDraft(data: unknown, find: (name: string) => Promise<string>): Promise<unknown> {
  const draft: unknown = (data as { draft?: unknown } | null | undefined)?.draft
  if (typeof draft === 'string') return { ...(data as object), draft: await find(draft) }
  const model: unknown = (draft as { model?: unknown } | null | undefined)?.model
  if (typeof model !== 'string') return data
  return { ...(data as object), draft: { ...(draft as object), model: await find(model) } }
}

/** Says where costs are remembered, unless the caller did; what is no list of options is for the engine to refuse. */
function withCostCache(data: unknown): unknown {
  if (data !== undefined && (typeof data !== 'object' || data === null || Array.isArray(data))) return data
  return { costCache: join(cacheFolder(), 'costs.json'), ...data }
}

/** Lets the engine read the files at `path`. */
async function open(path: string, data: unknown, heard: (progress: LoadProgress) => void, signal: AbortSignal): Promise<Model> {
  const { binding, data: placed, fallback } = await place(data, signal)
  const loading = new binding.NativeLoading(path, placed, ({ done, total }) => heard({ stage: 'load', done, total }))
  const cancel = (): void => loading.cancel()
  if (signal.aborted) cancel()
  else signal.addEventListener('abort', cancel, { once: true })
  const { model, failure } = await loading.wait()
  if (signal.aborted) {
    // A cancel that came too late for the engine still counts.
    await model?.dispose()
    throw new AbortedError('the load was aborted', { cause: signal.reason })
  }
  if (model) return new LoadedModel(model, fallback)
  throw errorOf(failure ?? { kind: 'Internal', message: 'the engine gave no model', causes: [] })
}
