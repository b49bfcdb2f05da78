/** Models from the hub, from a hub on the loopback interface. */
import { createHash, randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { AbortedError, DownloadError, load, ModelLoadError } from '../esm/index.js'
import { hubId } from '../esm/hub.js'
import { startHub } from './support/hub.mjs'

const MODEL = fileURLToPath(new URL('../models/de-en/small/', import.meta.url))
const FILES = ['config.json', 'generation_config.json', 'tokenizer.json', 'model.safetensors']

test.beforeEach(async (t) => {
  const files = {}
  for (const file of FILES) files[`clover/small/${file}`] = await readFile(join(MODEL, file))
  files['clover/one/model.gguf'] = randomBytes(200_000)
  t.context.hub = await startHub(files)
  t.context.cache = await mkdtemp(join(tmpdir(), 'trefoil-test-'))
  process.env.HF_ENDPOINT = t.context.hub.url
  process.env.TREFOIL_MODELS = t.context.cache
})

test.afterEach.always(async (t) => {
  await t.context.hub.close()
  await rm(t.context.cache, { recursive: true, force: true })
})

/** Loads the file that is no model, so that only the download can go well. */
async function fetchOne(t, options) {
  const error = await t.throwsAsync(load('clover/one:model.gguf', options))
  return error
}

test.serial('a folder is downloaded once and then loads without the hub', async (t) => {
  const { hub } = t.context
  const seen = []
  const model = await load('clover/small', { onProgress: (progress) => seen.push(progress) })
  t.is(model.info.kind, 'seq2seq')
  await model.dispose()
  const weights = seen.filter(({ stage, file }) => stage === 'download' && file === 'model.safetensors')
  t.true(weights.length > 0)
  const { done, total } = weights.at(-1)
  t.is(done, hub.files['clover/small/model.safetensors'].length)
  t.is(total, done)
  t.true(seen.some(({ stage }) => stage === 'load'))

  hub.requests.length = 0
  const again = await load('clover/small', { offline: true })
  await again.dispose()
  t.deepEqual(hub.requests, [])
})

test.serial('a download that broke off goes on where it ended', async (t) => {
  const { hub, cache } = t.context
  hub.behave = { cutAt: 70_000 }
  const error = await fetchOne(t)
  t.true(error instanceof DownloadError, String(error))
  t.regex(error.message, /broke off/)
  hub.requests.length = 0
  t.true((await fetchOne(t)) instanceof ModelLoadError)
  const ranges = hub.requests.map(({ range }) => range).filter(Boolean)
  t.true(ranges.length > 0)
  t.regex(ranges[0], /^bytes=[1-9]\d*-$/)
  t.deepEqual(await readFile(join(cache, 'clover/one/model.gguf')), hub.files['clover/one/model.gguf'])
})

test.serial('two that fetch the same file at once do not get in each other’s way', async (t) => {
  const { hub, cache } = t.context
  hub.behave = { cutAt: 70_000 }
  await fetchOne(t)
  for (const error of await Promise.all([fetchOne(t), fetchOne(t), fetchOne(t)])) t.true(error instanceof ModelLoadError, String(error))
  t.deepEqual(await readFile(join(cache, 'clover/one/model.gguf')), hub.files['clover/one/model.gguf'])
  t.deepEqual(await readdir(join(cache, 'clover/one')), ['model.gguf'])
})

test.serial('a part that another process writes is left alone, and one that nobody writes is not', async (t) => {
  const { hub, cache } = t.context
  const content = hub.files['clover/one/model.gguf']
  const folder = join(cache, 'clover/one')
  const name = `model.gguf.${createHash('sha256').update(content).digest('hex').slice(0, 16)}`
  await mkdir(folder, { recursive: true })
  // The parent lives; no process has the highest number. All of it is there, and the hub does not say how much that is.
  const [theirs, left] = [`${name}.${process.ppid}-1-1.part`, `${name}.4194305-1-1.part`]
  await writeFile(join(folder, theirs), content.subarray(0, 10))
  await writeFile(join(folder, left), content)
  hub.behave = { size: 0 }
  t.true((await fetchOne(t)) instanceof ModelLoadError)
  t.deepEqual([...new Set(hub.requests.map(({ range }) => range).filter(Boolean))], [`bytes=${content.length}-`])
  t.deepEqual((await readdir(folder)).toSorted(), ['model.gguf', theirs])
  t.deepEqual(await readFile(join(folder, 'model.gguf')), content)
})

test.serial('a file that is longer than the hub says is cut off', async (t) => {
  const { hub, cache } = t.context
  hub.behave = { size: 1000 }
  const error = await fetchOne(t)
  t.true(error instanceof DownloadError)
  t.regex(error.message, /more than 1000 bytes/)
  t.deepEqual(await readdir(join(cache, 'clover/one')), [])
})

test.serial('a redirect to nowhere and a shard that is no weights are refused', async (t) => {
  const { hub } = t.context
  const index = { weight_map: { a: 'config.json' } }
  hub.files['clover/small/model.safetensors.index.json'] = Buffer.from(JSON.stringify(index))
  await t.throwsAsync(load('clover/small'), { instanceOf: DownloadError, message: /names 'config.json'; allowed: .safetensors/ })
  const redirects = createServer((_, response) => response.writeHead(302, { location: 'http://[' }).end())
  await new Promise((resolve) => redirects.listen(0, '127.0.0.1', resolve))
  t.teardown(() => redirects.close())
  process.env.HF_ENDPOINT = `http://127.0.0.1:${redirects.address().port}`
  await t.throwsAsync(load('clover/other'), { instanceOf: DownloadError, message: /redirects to 'http:\/\/\[', which is no address/ })
})

test.serial('a store without ranges starts over', async (t) => {
  const { hub, cache } = t.context
  hub.behave = { cutAt: 70_000 }
  await fetchOne(t)
  hub.behave = { noRange: true }
  await fetchOne(t)
  t.deepEqual(await readFile(join(cache, 'clover/one/model.gguf')), hub.files['clover/one/model.gguf'])
})

test.serial('content that does not have the promised hash is thrown away', async (t) => {
  const { hub, cache } = t.context
  hub.behave = { lie: true }
  const error = await fetchOne(t)
  t.true(error instanceof DownloadError)
  t.regex(error.message, /damaged.*sha256/)
  t.deepEqual(await readdir(join(cache, 'clover/one')), [])
})

test.serial('what the hub does not have is a DownloadError that names it', async (t) => {
  const error = await t.throwsAsync(load('clover/none'), { instanceOf: DownloadError, code: 'DOWNLOAD' })
  t.regex(error.message, /clover\/none/)
  const file = await t.throwsAsync(load('clover/one:other.gguf'), { instanceOf: DownloadError })
  t.regex(file.message, /other\.gguf/)
})

test.serial('a hub that refuses or is not there is a DownloadError', async (t) => {
  const { hub } = t.context
  hub.behave = { status: 503 }
  t.regex((await fetchOne(t)).message, /503/)
  process.env.HF_ENDPOINT = 'http://127.0.0.1:9'
  const error = await fetchOne(t)
  t.true(error instanceof DownloadError)
  t.regex(error.message, /127\.0\.0\.1:9/)
  process.env.HF_ENDPOINT = 'nonsense'
  t.regex((await fetchOne(t)).message, /HF_ENDPOINT is 'nonsense'/)
})

test.serial('offline never asks', async (t) => {
  const { hub } = t.context
  const error = await t.throwsAsync(load('clover/small', { offline: true }), { instanceOf: DownloadError })
  t.regex(error.message, /offline/)
  t.deepEqual(hub.requests, [])
})

test.serial('a signal ends a download that stands still, and keeps what arrived', async (t) => {
  const { hub, cache } = t.context
  hub.behave = { silentAt: 100_000 }
  const controller = new AbortController()
  const reason = new Error('enough')
  const onProgress = () => controller.abort(reason)
  const error = await t.throwsAsync(load('clover/one:model.gguf', { signal: controller.signal, onProgress }), {
    instanceOf: AbortedError
  })
  t.is(error.cause, reason)
  const [part] = await readdir(join(cache, 'clover/one'))
  t.regex(part, /\.part$/)
  await t.throwsAsync(load('clover/one:model.gguf', { signal: AbortSignal.abort() }), { instanceOf: AbortedError })
})

test.serial('an error in the progress listener ends the load and comes out', async (t) => {
  const mine = new Error('mine')
  const onProgress = () => {
    throw mine
  }
  await t.throwsAsync(load('clover/small', { onProgress }), { is: mine })
})

test.serial('names that lead out of the model folder are refused', async (t) => {
  const { hub, cache } = t.context
  for (const file of ['../evil.gguf', 'a/../../evil.gguf', '/etc/evil.gguf', 'a\\..\\evil.gguf']) {
    await t.throwsAsync(load(`clover/one:${file}`), { instanceOf: DownloadError }, file)
  }
  hub.files['clover/shards/tokenizer.json'] = Buffer.from('{}')
  hub.files['clover/shards/model.safetensors.index.json'] = Buffer.from('{"weight_map":{"a":"../../../evil"}}')
  const error = await t.throwsAsync(load('clover/shards'), { instanceOf: DownloadError })
  t.regex(error.message, /evil/)
  t.false((await readdir(cache, { recursive: true })).some((name) => name.includes('evil')))
})

test('hub ids are told from paths', (t) => {
  t.deepEqual(hubId('owner/name'), { owner: 'owner', name: 'name', file: undefined })
  t.deepEqual(hubId('owner/name:sub/file.gguf'), { owner: 'owner', name: 'name', file: 'sub/file.gguf' })
  for (const path of ['./owner/name', '/owner/name', 'name', 'a/b/c', 'folder/model.gguf', '../a', 'C:\\a\\b', '']) {
    t.is(hubId(path), undefined, path)
  }
})
