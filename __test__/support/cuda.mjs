/** Packages that pretend to be the one for CUDA: a test says what happens where they are loaded. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ROOT } from './models.mjs'

export const { version: VERSION } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8'))

export const CARD = { name: 'Abacus 9000', capability: '9.0', memory: 80e9 }

/** The cards of an addon that works. */
export const CARDS = Array(8).fill(CARD)

/** A package whose addon is `code`; it goes away with the test. */
export async function pretend(t, code, version = VERSION) {
  const folder = await mkdtemp(join(tmpdir(), 'trefoil-cuda-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  await writeFile(join(folder, 'package.json'), JSON.stringify({ name: 'trefoil-cuda', version, main: 'addon.js' }))
  await writeFile(join(folder, 'addon.js'), code)
  return { folder, version }
}

/** The code of an addon whose probe answers so. */
export const answering = (answer) => `exports.probe = () => (${JSON.stringify(answer)})\n`

/** The code of an addon whose probe finds that the card can't be used. */
export const refusing = (reason, message) =>
  answering({ driver: '13.0', cards: [CARD], failure: { kind: 'Device', message, causes: [], reason } })

/**
 * The code of an addon with eight cards, on which models run as the CPU runs them. It notes every device that it was
 * asked for in \`devices\`, and a draft model's own device behind the model's.
 */
export const WORKING = `
const { NativeLoading } = require(${JSON.stringify(join(ROOT, 'index.js'))})
const driver = '13.0', cards = ${JSON.stringify(CARDS)}
exports.probe = (ordinal) =>
  ordinal < cards.length
    ? { driver, cards, available: 79e9 }
    : { driver, cards, failure: { kind: 'Device', message: 'there is no card ' + ordinal, causes: [], reason: 'no-card' } }
exports.devices = []
exports.NativeLoading = function (path, { device, draft, ...options }, hear) {
  const little = draft?.device === undefined ? {} : { draft: { ...draft, device: 'cpu' } }
  exports.devices.push(draft?.device === undefined ? device : [device, draft.device])
  return new NativeLoading(path, { ...options, device: 'cpu', ...(draft === undefined ? {} : { draft }), ...little }, hear)
}
`
