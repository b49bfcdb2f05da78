/**
 * Models by their hub id: looked up in the cache folder, downloaded where they are not there.
 *
 * A folder's `config.json` comes last, so that a folder which has one is complete, and knowing so takes no question to
 * the hub.
 */

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { env } from 'node:process'

import { cacheFolder } from './cache.js'
import { download } from './download.js'
import { AbortedError, DownloadError } from './errors.js'
import type { LoadProgress } from './options.js'

/** A model on the hub, or one file of it. */
export interface HubId {
  owner: string
  name: string
  file: string | undefined
}

/** Files that a model may lack. */
const OPTIONAL = ['generation_config.json', 'tokenizer_config.json', 'chat_template.jinja']

const ID = /^([A-Za-z0-9][\w.-]*)\/([A-Za-z0-9][\w.-]*)(?::(.+))?$/

/** Reads `owner/name[:file]`; undefined where `source` is none. A path that ends in .gguf means a file on this machine. */
export function hubId(source: string): HubId | undefined {
  const [, owner, name, file] = ID.exec(source) ?? []
  if (!owner || !name || (!file && name.toLowerCase().endsWith('.gguf'))) return undefined
  return { owner, name, file }
}

/**
 * The path of a model in the cache folder, downloaded first where it is not there.
 *
 * @throws {DownloadError} when it is neither here nor to be had
 * @throws {AbortedError} when the signal ended the download; what has arrived is kept for the next try
 */
export async function fetchModel(
  { owner, name, file }: HubId,
  offline: boolean,
  progress: (progress: LoadProgress) => void,
  signal: AbortSignal
): Promise<string> {
  const title = `${owner}/${name}`
  if (file !== undefined) refuseOutside(file, title)
  const folder = join(cacheFolder(), owner, name)
  const target = join(folder, file ?? '')
  if (existsSync(join(folder, file ?? 'config.json'))) return target
  if (offline) throw new DownloadError(`${title} is not in ${cacheFolder()}, and offline is set`)
  const get = (part: string): Promise<boolean> => {
    const heard = (done: number, total: number): void => progress({ stage: 'download', file: part, done, total })
    const url = new URL(`${title}/resolve/main/${part.split('/').map(encodeURIComponent).join('/')}`, endpoint())
    return download(url, join(folder, part), heard, signal)
  }
  const need = async (part: string): Promise<void> => {
    if (await get(part)) return
    throw new DownloadError(`there is no folder '${title}' here, and the hub has no file ${part} of a model ${title}`)
  }
  try {
    signal.throwIfAborted()
    if (file === undefined) await fetchFolder(folder, title, get, need)
    else await need(file)
  } catch (error) {
    if (signal.aborted) throw new AbortedError(`the download of ${title} was aborted`, { cause: signal.reason })
    if (error instanceof Error && 'syscall' in error) {
      throw new DownloadError(`${title} can't be written to ${cacheFolder()}`, { cause: error })
    }
    throw error
  }
  return target
}

async function fetchFolder(
  folder: string,
  title: string,
  get: (part: string) => Promise<boolean>,
  need: (part: string) => Promise<void>
): Promise<void> {
  await need('tokenizer.json')
  for (const part of OPTIONAL) await get(part)
  const index = 'model.safetensors.index.json'
  if (await get(index)) {
    for (const shard of shards(await readFile(join(folder, index), 'utf8'), title)) {
      if (!existsSync(join(folder, shard))) await need(shard)
    }
  } else {
    await need('model.safetensors')
  }
  await need('config.json')
}

/** The files that an index names. */
function shards(index: string, title: string): Set<string> {
  let files: unknown[]
  try {
    files = Object.values((JSON.parse(index) as { weight_map: object }).weight_map)
  } catch (cause) {
    throw new DownloadError(`${title} has an index of its weights that can't be read`, { cause })
  }
  const named = new Set<string>()
  for (const file of files) {
    if (typeof file !== 'string') throw new DownloadError(`${title} has an index of its weights that names no files`)
    refuseOutside(file, title)
    // Any other file would not be of the weights: a config.json that comes early would make the folder look complete.
    if (!file.endsWith('.safetensors')) throw new DownloadError(`${title} has an index of its weights that names '${file}'; allowed: .safetensors files`)
    named.add(file)
  }
  return named
}

/** Refuses a name that would lead out of the model's folder. */
function refuseOutside(file: string, title: string): void {
  const parts = file.split('/')
  if (parts.some((part) => part === '' || part === '.' || part === '..' || /[\\:\0]/.test(part))) {
    throw new DownloadError(`'${file}' of ${title} is no file inside the model's folder`)
  }
}

function endpoint(): URL {
  const text = env['HF_ENDPOINT'] || 'https://huggingface.co'
  const whole = text.endsWith('/') ? text : `${text}/`
  if (!URL.canParse(whole)) throw new DownloadError(`HF_ENDPOINT is '${text}'; allowed: a URL`)
  return new URL(whole)
}
