/** `trefoil doctor`: what it finds, in words and as JSON. */
import { spawn } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { answering, CARDS, pretend, refusing, VERSION, WORKING } from './support/cuda.mjs'
import { ROOT } from './support/models.mjs'

let cache
test.before(async () => {
  cache = await mkdtemp(join(tmpdir(), 'trefoil-cache-'))
  for (const folder of ['owner/whole', 'owner/half', 'owner/files', 'owner/whole/deeper']) await mkdir(join(cache, folder), { recursive: true })
  for (const file of ['config.json', 'model.safetensors', 'deeper/model.gguf']) await writeFile(join(cache, 'owner/whole', file), '0123456789')
  await writeFile(join(cache, 'owner/half/tokenizer.json'), '{}')
  await writeFile(join(cache, 'owner/files/q4.GGUF'), '012')
  await writeFile(join(cache, 'single.gguf'), '0123')
  await writeFile(join(cache, 'costs.json'), '{}')
})
test.after.always(() => rm(cache, { recursive: true, force: true }))

function doctor(args, env) {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [join(ROOT, 'esm/cli.js'), 'doctor', ...args], {
      env: { ...process.env, TREFOIL_MODELS: cache, ...env }
    })
    const out = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr']) child[name].setEncoding('utf8').on('data', (text) => (out[name] += text))
    child.once('close', (code) => resolve({ code, ...out }))
  })
}

const MODELS = [
  { name: 'owner/files/q4.GGUF', bytes: 3 },
  { name: 'owner/whole', bytes: 20 },
  { name: 'single.gguf', bytes: 4 }
]

test('doctor --json says what is here where CUDA is not', async (t) => {
  const { code, stdout, stderr } = await doctor(['--json'], { TREFOIL_CUDA_PACKAGE: cache })
  t.is(stderr, '')
  t.is(code, 0)
  const { cpu, memory, ...found } = JSON.parse(stdout)
  t.deepEqual(found, {
    version: VERSION,
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    cache: { folder: cache, models: MODELS },
    cuda: { cards: [], failure: { reason: 'package', message: 'the package trefoil-cuda is not installed' } }
  })
  t.true(['AVX-512 VNNI', 'AVX2', 'NEON', 'portable'].includes(cpu.instructions))
  t.true(cpu.threads >= 1 && memory.available > 0 && memory.total > memory.available)
})

test('doctor names all cards', async (t) => {
  const found = await pretend(t, WORKING)
  const env = { TREFOIL_CUDA_PACKAGE: found.folder }
  const { cuda } = JSON.parse((await doctor(['--json'], env)).stdout)
  t.deepEqual(cuda, { driver: '13.0', cards: CARDS, available: 79e9, package: found })
  const { stdout } = await doctor([], env)
  t.regex(stdout, /^trefoil +\d+\.\d+\.\d+, Node v/)
  t.regex(stdout, /^CUDA +can be used, with 79\.0 GB free$/m)
  t.regex(stdout, /^graphs +small steps start as one$/m)
  t.regex(stdout, /^package +trefoil-cuda .* in /m)
  t.regex(stdout, /^driver +runs CUDA 13\.0$/m)
  for (const at of CARDS.keys()) t.regex(stdout, new RegExp(`^cuda:${at} +Abacus 9000, compute capability 9\\.0, 80\\.0 GB$`, 'm'))
  t.regex(stdout, /^cache +.*, 3 models\n +owner\/files\/q4\.GGUF, 0\.0 MB$/m)
})

test('doctor says what a card can do without', async (t) => {
  const graphFailure = 'a graph could not be made: not supported'
  const found = await pretend(t, answering({ driver: '13.0', cards: CARDS, available: 79e9, graphFailure }))
  const env = { TREFOIL_CUDA_PACKAGE: found.folder }
  const { cuda } = JSON.parse((await doctor(['--json'], env)).stdout)
  t.deepEqual(cuda, { driver: '13.0', cards: CARDS, available: 79e9, package: found, graphFailure })
  t.regex((await doctor([], env)).stdout, /^graphs +small steps start launch by launch: a graph could not be made: not supported$/m)
})

test('doctor says why a card does not work', async (t) => {
  const { folder } = await pretend(t, refusing('driver-too-old', 'the NVIDIA driver runs CUDA 12.4 at most'))
  const { code, stdout } = await doctor([], { TREFOIL_CUDA_PACKAGE: folder })
  t.is(code, 0)
  t.regex(stdout, /^CUDA +can't be used: the NVIDIA driver runs CUDA 12\.4 at most$/m)
})

test('doctor survives a folder that is none and refuses what it does not know', async (t) => {
  const { code, stdout } = await doctor(['--json'], { TREFOIL_MODELS: join(cache, 'nowhere'), TREFOIL_CUDA_PACKAGE: cache })
  t.is(code, 0)
  t.deepEqual(JSON.parse(stdout).cache.models, [])
  for (const [args, message] of [[['here'], /'here' is one argument too many/], [['--loud'], /--loud/]]) {
    const { code, stderr } = await doctor(args)
    t.is(code, 1)
    t.regex(stderr, message)
  }
})
