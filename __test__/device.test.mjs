/** Where models run: cards that work, cards that don't, and drivers that take their process with them. */
import { spawn } from 'node:child_process'
import { createRequire } from 'node:module'
import { text } from 'node:stream/consumers'
import test from 'ava'
import { AbortedError, DeviceError, load, ModelLoadError } from '../esm/index.js'
import { probeBy } from '../esm/probe.js'
import { answering, CARD, CARDS, pretend, refusing, WORKING } from './support/cuda.mjs'
import { TINY } from './support/models.mjs'

const require = createRequire(import.meta.url)

/** What happens where the addon is loaded or tried out, and what is made of it. */
const FAILURES = {
  'no driver': [
    `throw new Error('libcuda.so.1: cannot open shared object file: No such file or directory')`,
    'driver',
    /no NVIDIA driver: libcuda\.so\.1/
  ],
  'a driver without what the addon calls': [
    `throw new Error('addon.node: undefined symbol: cuLibraryLoadData')`,
    'driver-too-old',
    /too old: .*cuLibraryLoadData/
  ],
  'no cuBLAS': [`throw new Error('libcublas.so.13: cannot open shared object file')`, 'library', /can't be loaded: libcublas\.so\.13/],
  'an addon without a probe': ['', 'library', /probe is not a function/],
  'a driver that is too old': [refusing('driver-too-old', 'the driver runs CUDA 12.4'), 'driver-too-old', /^the driver runs CUDA 12\.4$/],
  'no card': [refusing('no-card', 'there is no card 0'), 'no-card', /there is no card 0/],
  'a card that is too old': [refusing('card-too-old', 'the card has 7.0'), 'card-too-old', /7\.0/],
  'a card without memory': [refusing('memory', 'no memory left'), 'memory', /no memory left/],
  'a build without CUDA': [refusing('build', 'this build has no CUDA'), 'build', /no CUDA/],
  'an answer that says nothing': [answering({ cards: [] }), 'driver', /can’t be used/],
  'a process that ends': [`process.exit(7)`, 'crash', /ended with code 7/],
  'a process that ends without a word': [`process.exit(0)`, 'crash', /ended with code 0/],
  'a process that ends by a signal': [`process.kill(process.pid, 'SIGSEGV'); while (true);`, 'crash', /ended with SIGSEGV/],
  'a process that aborts': [`process.abort()`, 'crash', /ended with SIGABRT/],
  'a process that prints something else': [`process.stdout.write('NVRM: error'); exports.probe = () => ({})`, 'crash', /ended with code 0/]
}

for (const [title, [code, reason, message]] of Object.entries(FAILURES)) {
  test(`the probe survives ${title}`, async (t) => {
    const { failure } = await probeBy(await pretend(t, code), 0)
    t.is(failure.reason, reason)
    t.regex(failure.message, message)
  })
}

test('the probe gives up on a card that hangs', async (t) => {
  const start = performance.now()
  const { failure } = await probeBy(await pretend(t, 'while (true);'), 0, 500)
  t.deepEqual(failure, { reason: 'timeout', message: 'the card did not answer within 0.5 s' })
  t.true(performance.now() - start < 10_000)
})

test('the probe refuses a package of another version without loading it', async (t) => {
  const { failure, package: found } = await probeBy(await pretend(t, 'process.exit(7)', '0.0.9'), 0)
  t.is(failure.reason, 'version')
  t.regex(failure.message, /version 0\.0\.9; allowed: \d+\.\d+\.\d+/)
  t.is(found.version, '0.0.9')
})

test('the probe tells of driver, cards and memory', async (t) => {
  const found = await pretend(t, WORKING)
  t.deepEqual(await probeBy(found, 0), { driver: '13.0', cards: CARDS, available: 79e9, package: found })
})

test('the probe keeps what it knows of a card that can’t be used', async (t) => {
  const found = await pretend(t, refusing('memory', 'no memory left'))
  t.like(await probeBy(found, 0), { driver: '13.0', cards: [CARD], package: found })
})

/** Loads the tiny model with the CUDA package at `folder`. */
async function loadWith(t, folder, options) {
  process.env['TREFOIL_CUDA_PACKAGE'] = folder
  t.teardown(() => delete process.env['TREFOIL_CUDA_PACKAGE'])
  const model = await load(TINY, options)
  t.teardown(() => model.dispose())
  return model
}

test.serial('without the package, auto runs on the CPU and says why', async (t) => {
  for (const options of [undefined, { device: 'auto' }]) {
    const { info } = await loadWith(t, '/nowhere', options)
    t.like(info, { device: 'cpu', fallback: 'the package trefoil-cuda is not installed' })
  }
})

test.serial('without the package, cuda is a DeviceError that says so', async (t) => {
  for (const device of ['cuda', 'cuda:3']) {
    const error = await t.throwsAsync(loadWith(t, '/nowhere', { device }), { instanceOf: DeviceError, code: 'DEVICE' })
    t.is(error.message, `options.device is '${device}'; the package trefoil-cuda is not installed`)
    t.is(error.reason, 'package')
  }
})

test.serial('cpu asks for no card', async (t) => {
  const { folder } = await pretend(t, 'process.exit(7)')
  const { info } = await loadWith(t, folder, { device: 'cpu' })
  t.is(info.device, 'cpu')
  t.false('fallback' in info)
})

test.serial('a card that takes its process with it leaves this one and the CPU', async (t) => {
  const { folder } = await pretend(t, `process.kill(process.pid, 'SIGSEGV'); while (true);`)
  const model = await loadWith(t, folder)
  t.like(model.info, { device: 'cpu', fallback: 'the process that tried the card out ended with SIGSEGV' })
  t.is(typeof (await model.generate('a', { maxTokens: 2 }).text()), 'string')
  const error = await t.throwsAsync(loadWith(t, folder, { device: 'cuda:0' }), { instanceOf: DeviceError })
  t.is(error.reason, 'crash')
})

test.serial('a model lives in the addon whose card works', async (t) => {
  const { folder } = await pretend(t, WORKING)
  const { devices } = require(folder)
  for (const device of ['auto', 'cuda', 'cuda:2']) {
    const model = await loadWith(t, folder, { device })
    t.false('fallback' in model.info)
    t.is(typeof (await model.generate('a', { maxTokens: 2 }).text()), 'string')
  }
  await loadWith(t, folder, { device: 'cpu' })
  t.deepEqual(devices, ['auto', 'cuda', 'cuda:2'])
  await t.throwsAsync(load('./no/such/folder', { device: 'cuda' }), { instanceOf: ModelLoadError })
})

test.serial('several cards are tried out, each by itself', async (t) => {
  const { folder } = await pretend(t, WORKING)
  const { devices } = require(folder)
  for (const device of [['cuda:1'], ['cuda', 'cuda:3'], ['cuda:7', 'cuda:0', 'cuda:2']]) {
    const model = await loadWith(t, folder, { device })
    t.is(typeof (await model.generate('a', { maxTokens: 2 }).text()), 'string')
    t.deepEqual(devices.at(-1), device)
  }
  const error = await t.throwsAsync(loadWith(t, folder, { device: ['cuda:0', 'cuda:9'] }), { instanceOf: DeviceError })
  t.is(error.message, `options.device[1] is 'cuda:9'; there is no card 9`)
  t.is(error.reason, 'no-card')
  t.is(devices.length, 3)
})

test.serial('a draft model has a device of its own', async (t) => {
  const { folder } = await pretend(t, WORKING)
  const { devices } = require(folder)
  for (const device of ['cuda:0', 'cpu', ['cuda:0', 'cuda:1']]) {
    const model = await loadWith(t, folder, { device, draft: { model: TINY, device: 'cuda:1' } })
    t.is(typeof (await model.generate('a', { maxTokens: 2, decoding: 'speculative' }).text()), 'string')
    t.deepEqual(devices.at(-1), [device, 'cuda:1'])
  }
  const wanted = loadWith(t, folder, { draft: { model: TINY, device: 'cuda:8' } })
  const error = await t.throwsAsync(wanted, { instanceOf: DeviceError })
  t.is(error.message, `options.draft.device is 'cuda:8'; there is no card 8`)
})

test.serial('the draft model has its card where the model falls back to the CPU', async (t) => {
  const { folder } = await pretend(t, WORKING.replace('ordinal < cards.length', 'ordinal === 1'))
  const { devices } = require(folder)
  const model = await loadWith(t, folder, { draft: { model: TINY, device: 'cuda:1' } })
  t.like(model.info, { device: 'cpu', draftDevice: 'cpu', fallback: 'there is no card 0' })
  t.deepEqual(devices, [['cpu', 'cuda:1']])
})

test.serial('a draft model on the CPU beside a model on the CPU shares its threads', async (t) => {
  const model = await loadWith(t, '/nowhere', { device: 'cpu', draft: { model: TINY, device: 'cpu' } })
  t.like(model.info, { device: 'cpu', draftDevice: 'cpu' })
  const alone = await loadWith(t, '/nowhere', { device: 'cpu', draft: TINY })
  const text = (of) => of.generate('a', { maxTokens: 8, decoding: 'speculative' }).text()
  t.is(await text(model), await text(alone))
  t.false('draftDevice' in (await loadWith(t, '/nowhere', { device: 'cpu' })).info)
})

test.serial('an engine that finds the card wanting is heard', async (t) => {
  // The CPU's engine, taken for CUDA's: a card that is gone since it was probed.
  const code = WORKING.replace(`{ ...options, device: 'cpu',`, '{ ...options, device,')
  const { folder } = await pretend(t, code)
  const { info } = await loadWith(t, folder, { device: 'auto' })
  t.like(info, { device: 'cpu', fallback: 'this build has no CUDA' })
  const error = await t.throwsAsync(loadWith(t, folder, { device: 'cuda:1' }), { instanceOf: DeviceError })
  t.is(error.message, `options.device is 'cuda:1'; this build has no CUDA`)
  t.is(error.reason, 'build')
})

test.serial('a probe that nobody waits for any more is ended', async (t) => {
  const { folder } = await pretend(t, 'while (true);')
  const script = `
    import { load } from ${JSON.stringify(new URL('../esm/index.js', import.meta.url).href)}
    await load(${JSON.stringify(TINY)}, { signal: AbortSignal.timeout(500) }).catch(({ code }) => console.log(code))`
  const start = performance.now()
  const child = spawn(process.execPath, ['--input-type=module', '--eval', script], { env: { ...process.env, TREFOIL_CUDA_PACKAGE: folder } })
  t.is(await text(child.stdout), 'ABORTED\n')
  t.true(performance.now() - start < 10_000)
})

test.serial('a load that is aborted does not wait for the card', async (t) => {
  const { folder } = await pretend(t, 'setTimeout(() => process.exit(), 2000); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2000)')
  const start = performance.now()
  await t.throwsAsync(loadWith(t, folder, { signal: AbortSignal.timeout(100) }), { instanceOf: AbortedError })
  t.true(performance.now() - start < 1500)
})
