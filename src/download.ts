/**
 * One file from the hub, whole or not at all.
 *
 * What has arrived is kept beside the target under a name with the content's hash, so that a later try goes on where
 * this one ended, and never goes on with another version's bytes. The name also says who writes it: two that fetch the
 * same file at once each write their own, and what nobody writes any more is taken over by its next try. Only a file
 * whose hash is right is moved into place, and a move is atomic: whoever finds the file finds all of it.
 */

import { createHash, randomBytes, type Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { kill, pid } from 'node:process'

import { DownloadError } from './errors.js'

/** Hears how much of a file is here. */
export type Heard = (done: number, total: number) => void

/** This copy of the module, in this thread: others of the process may write parts as well. */
const OWNER = `${pid}-${randomBytes(4).toString('hex')}`

/** Parts that are being written by this owner. */
const live = new Set<string>()

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
  await mkdir(dirname(target), { recursive: true })
  const beside = `${target}.${described.sha256?.slice(0, 16) ?? 'whole'}`
  const part = `${beside}.${OWNER}-${randomBytes(4).toString('hex')}.part`
  live.add(part)
  try {
    if (described.sha256) await takeOver(beside, part)
    await fill(url, part, described, heard, signal)
    await rename(part, target)
  } finally {
    live.delete(part)
    if (!described.sha256) await rm(part, { force: true })
  }
  return true
}

/** Brings a part to its end, from where it is. */
async function fill(url: URL, part: string, { sha256, size }: Described, heard: Heard, signal: AbortSignal): Promise<void> {
  let begun = await stat(part).then((found) => found.size, () => 0)
  if (size > 0 && begun > size) begun = 0
  const hash = createHash('sha256')
  if (size === 0 || begun < size) begun = await transfer(url, part, begun, { hash, size }, (done) => heard(done, size), signal)
  else await hashFile(part, hash)
  if (size > 0 && begun > size) {
    await rm(part, { force: true })
    throw new DownloadError(`${url.href} has more than ${size} bytes, which the hub says it has`)
  }
  const found = hash.digest('hex')
  if (sha256 && found !== sha256) {
    await rm(part, { force: true })
    throw new DownloadError(`${url.href} arrived damaged: its sha256 is ${found}; the hub says ${sha256}`)
  }
  if (!sha256 && size > 0 && begun !== size) {
    throw new DownloadError(`${url.href} arrived with ${begun} bytes; the hub says ${size}`)
  }
}

/** Makes `part` of what an earlier try has left, if there is such a thing. */
async function takeOver(beside: string, part: string): Promise<void> {
  const folder = dirname(beside)
  const left = (await readdir(folder)).filter((name) => name.startsWith(`${basename(beside)}.`) && name.endsWith('.part'))
  for (const name of left) {
    const path = join(folder, name)
    if (live.has(path) || isWritten(name.slice(basename(beside).length + 1))) continue
    // Another one may have been faster.
    if (await rename(path, part).then(() => true, () => false)) return
  }
}

/** Whether others write a part, by the owner in its name; a copy of this module in this very process may be one. */
function isWritten(owner: string): boolean {
  const other = Number(owner.split('-')[0])
  if (owner.startsWith(`${OWNER}-`) || !Number.isSafeInteger(other) || other <= 0) return false
  try {
    return kill(other, 0)
  } catch (error) {
    // A process of somebody else may not be signalled, but it is there.
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
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
    if (!URL.canParse(location, at.href)) throw new DownloadError(`${at.href} redirects to '${location}', which is no address`)
    at = new URL(location, at)
  }
  throw new DownloadError(`${url.href} was redirected more than ${MOVES} times`)
}

/**
 * Appends what is missing behind the first `begun` bytes and hashes all of it; gives the bytes that are then there, or
 * that would be, once they are more than `size`.
 */
async function transfer(
  url: URL,
  part: string,
  begun: number,
  { hash, size }: { hash: Hash; size: number },
  heard: (done: number) => void,
  signal: AbortSignal
): Promise<number> {
  const headers: Record<string, string> = { 'accept-encoding': 'identity' }
  if (begun > 0) headers['range'] = `bytes=${begun}-`
  const answer = await request(url, { headers }, signal)
  if (begun > 0 && answer.status === 416) {
    // There is nothing behind what is here.
    await hashFile(part, hash)
    return begun
  }
  if (!answer.ok || !answer.body) throw refused(url, answer)
  const resumed = begun > 0 && answer.status === 206
  let done = resumed ? begun : 0
  if (resumed) await hashFile(part, hash)
  const file = await open(part, resumed ? 'a' : 'w')
  try {
    for await (const bytes of answer.body) {
      if (size > 0 && done + bytes.length > size) return done + bytes.length
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
