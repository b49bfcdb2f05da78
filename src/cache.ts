/** Where models from the hub are kept, and which are there. */

import { readdir, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { env, platform } from 'node:process'

/** `TREFOIL_MODELS`, or `trefoil` in the platform's cache folder. */
export function cacheFolder(): string {
  const { TREFOIL_MODELS, XDG_CACHE_HOME, LOCALAPPDATA } = env
  if (TREFOIL_MODELS) return TREFOIL_MODELS
  if (platform === 'win32' && LOCALAPPDATA) return join(LOCALAPPDATA, 'trefoil')
  return join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'trefoil')
}

/** A model in the cache folder: its name there, and its bytes. */
export interface CachedModel {
  readonly name: string
  readonly bytes: number
}

/** Folders on the way to a model's files: owner and name. */
const DEPTH = 2

/** The models in the cache folder: `owner/name` for a folder that is complete, and every .gguf file by its path. */
export async function cachedModels(): Promise<CachedModel[]> {
  const models = await modelsIn('', DEPTH)
  return models.toSorted((a, b) => (a.name < b.name ? -1 : 1))
}

async function modelsIn(path: string, depth: number): Promise<CachedModel[]> {
  const folder = join(cacheFolder(), path)
  const names = await readdir(folder).catch(() => [])
  // A link to a folder is one. What is gone since it was listed is nothing.
  const isFolder = await Promise.all(names.map((name) => stat(join(folder, name)).then((found) => found.isDirectory(), () => false)))
  const files = names.filter((_, at) => !isFolder[at])
  const sizes = (names: string[]): Promise<number[]> =>
    // A file that is gone since it was listed has no bytes.
    Promise.all(names.map((name) => stat(join(folder, name)).then(({ size }) => size, () => 0)))
  if (path !== '' && files.includes('config.json')) {
    const bytes = await sizes(files)
    return [{ name: path, bytes: bytes.reduce((sum, more) => sum + more, 0) }]
  }
  const single = files.filter((name) => name.toLowerCase().endsWith('.gguf'))
  const bytes = await sizes(single)
  const inside = (name: string): string => (path === '' ? name : `${path}/${name}`)
  const below = depth === 0 ? [] : names.filter((_, at) => isFolder[at])
  const deeper = await Promise.all(below.map((name) => modelsIn(inside(name), depth - 1)))
  return [...single.map((name, at) => ({ name: inside(name), bytes: bytes[at] ?? 0 })), ...deeper.flat()]
}
