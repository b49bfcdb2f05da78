/**
 * One file from the hub, whole or not at all.
 *
 * What has arrived is kept beside the target under a name with the content's hash, so that a later try goes on where
 * this one ended, and never goes on with another version's bytes. Only a file whose hash is right is moved into place,
 * and a move is atomic: whoever finds the file finds all of it.
 */

import { createHash, type Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, open, rename, rm, stat } from 'node:fs/promises'
import { dirname } from 'node:path'

import { DownloadError } from './errors.js'

/** Hears how much of a file is here. */
export type Heard = (done: number, total: number) => void

/** Redirects that stay on the hub: a repository that was renamed. */
const MOVES = 5

/** What the hub says about a file before it is fetched. */
interface Described {
  /** The content's sha256, which the hub knows for large files only. */
  sha256: string | undefined
  /** Bytes; 0 where the hub does not say. */
  size: number
}

/**
 * Downloads `url` to `target`, going on where an earlier try ended.
 *
 * @returns whether the hub has the file
 * @throws {DownloadError} when the hub refuses, the transfer breaks or the content's hash is wrong
 */
export async function download(url: URL, target: string, heard: Heard, signal: AbortSignal): Promise<boolean> {
  const described = await describe(url, signal)
  if (!described) return false
  const { sha256, size } = described
  const part = `${target}.${sha256?.slice(0, 16) ?? 'whole'}.part`
  await mkdir(dirname(target), { recursive: true })
  let begun = sha256 ? await stat(part).then((found) => found.size, () => 0) : 0
  if (size > 0 && begun > size) begun = 0
  const hash = createHash('sha256')
  if (size === 0 || begun < size) begun = await transfer(url, part, begun, hash, (done) => heard(done, size), signal)
  else await hashFile(part, hash)
  const found = hash.digest('hex')
  if (sha256 && found !== sha256) {
    await rm(part, { force: true })
    throw new DownloadError(`${url.href} arrived damaged: its sha256 is ${found}; the hub says ${sha256}`)
  }
  if (!sha256 && size > 0 && begun !== size) {
    throw new DownloadError(`${url.href} arrived with ${begun} bytes; the hub says ${size}`)
  }
  await rename(part, target)
  return true
}

/** Asks for the file's hash and size, which are on the hub's own answer and not on that of the store behind it. */
async function describe(url: URL, signal: AbortSignal): Promise<Described | undefined> {
  let at = url
  for (let move = 0; move < MOVES; move += 1) {
    const answer = await request(at, { method: 'HEAD', redirect: 'manual', headers: { 'accept-encoding': 'identity' } }, signal)
    const linked = answer.headers.get('x-linked-etag')
    const location = answer.headers.get('location')
    if (answer.status === 404) return undefined
    if (linked || answer.ok) {
      const sha256 = linked?.match(/^"?([0-9a-f]{64})"?$/)?.[1]
      const size = Number(answer.headers.get('x-linked-size') ?? (answer.ok ? answer.headers.get('content-length') : 0))
      return { sha256, size: Number.isSafeInteger(size) && size > 0 ? size : 0 }
    }
    if (!location || answer.status < 300 || answer.status >= 400) throw refused(at, answer)
    at = new URL(location, at)
  }
  throw new DownloadError(`${url.href} was redirected more than ${MOVES} times`)
}

/** Appends what is missing behind the first `begun` bytes and hashes all of it; gives the bytes that are then there. */
async function transfer(
  url: URL,
  part: string,
  begun: number,
  hash: Hash,
  heard: (done: number) => void,
  signal: AbortSignal
): Promise<number> {
  const headers: Record<string, string> = { 'accept-encoding': 'identity' }
  if (begun > 0) headers['range'] = `bytes=${begun}-`
  const answer = await request(url, { headers }, signal)
  if (!answer.ok || !answer.body) throw refused(url, answer)
  const resumed = begun > 0 && answer.status === 206
  let done = resumed ? begun : 0
  if (resumed) await hashFile(part, hash)
  const file = await open(part, resumed ? 'a' : 'w')
  try {
    for await (const bytes of answer.body) {
      await file.writeFile(bytes)
      hash.update(bytes)
      done += bytes.length
      heard(done)
    }
    await file.sync()
  } catch (cause) {
    signal.throwIfAborted()
    throw new DownloadError(`${url.href} broke off after ${done} bytes; the next try goes on from there`, { cause })
  } finally {
    await file.close()
  }
  return done
}

async function hashFile(path: string, hash: Hash): Promise<void> {
  for await (const bytes of createReadStream(path)) hash.update(bytes as Buffer)
}

async function request(url: URL, init: RequestInit, signal: AbortSignal): Promise<Response> {
  try {
    return await fetch(url, { ...init, signal })
  } catch (cause) {
    signal.throwIfAborted()
    throw new DownloadError(`${url.host} can't be reached`, { cause })
  }
}

function refused(url: URL, answer: Response): DownloadError {
  return new DownloadError(`${url.href}: the hub answered ${answer.status} ${answer.statusText}`.trimEnd())
}
