/** `trefoil tune`, and what `load` makes of its file. */
import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { InvalidOptionError, load } from '../esm/index.js'
import { sweep } from '../esm/tune/sweep.js'
import { LARGE, ROOT, SMALL } from './support/models.mjs'

let folder
let goldens
test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'trefoil-tune-'))
  const lines = (await readFile(join(LARGE, 'golden.jsonl'), 'utf8')).trimEnd().split('\n')
  goldens = lines.map((line) => JSON.parse(line))
})
test.after.always(() => rm(folder, { recursive: true, force: true }))

function trefoil(...args) {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [join(ROOT, 'esm/cli.js'), ...args], { cwd: folder })
    const out = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr']) {
      child[name].setEncoding('utf8').on('data', (text) => {
        out[name] += text
      })
    }
    child.once('close', (code) => resolve({ code, ...out }))
  })
}

const tune = (file, ...more) => trefoil('tune', LARGE, file, '--draft', SMALL, '--fallback', '0.2,1.01', '--rollback', '1,4', '--candidates', '0.1', ...more)

test('tune keeps the fastest setting that is good enough, and bild takes it from there', async (t) => {
  const file = join(folder, 'sentences.txt')
  await writeFile(file, `${goldens.slice(0, 20).map(({ de }) => de).join('\n')}\n`)
  const output = join(folder, 'found.json')
  const { code, stdout, stderr } = await tune(file, '--output', output, '--plot', join(folder, 'curve.svg'), '--floor', '0.5', '--json')
  t.is(code, 0, stderr)
  const { score, points, best } = JSON.parse(stdout)
  t.is(score, 100)
  t.is(points.length, 4)
  // A little model that is never sure leaves the large model's own text.
  for (const { quality, largeCalls } of points.filter(({ fallback }) => fallback > 1)) t.deepEqual([quality, largeCalls], [1, 1])
  t.is(best.speed, Math.max(...points.filter(({ quality }) => quality >= 0.5).map(({ speed }) => speed)))
  t.regex(await readFile(join(folder, 'curve.svg'), 'utf8'), /^<svg [^]*polyline/)
  const { bild, found } = JSON.parse(await readFile(output, 'utf8'))
  const { fallback, cumulative, candidates, rollback, maxDraft } = best
  t.deepEqual(bild, { fallback, cumulative, candidates, rollback, maxDraft })
  t.deepEqual([cumulative, candidates], [true, 0.1])
  t.is(found.prompts, 20)

  const tuned = await load(LARGE, { draft: SMALL, tuned: output })
  const plain = await load(LARGE, { draft: SMALL })
  try {
    for (const { de } of goldens.slice(0, 10)) {
      const own = await tuned.generate(de, { maxTokens: 64, decoding: 'bild' }).result
      const given = await plain.generate(de, { maxTokens: 64, decoding: { type: 'bild', ...bild } }).result
      t.deepEqual(own.tokens, given.tokens)
      t.is(own.stats.steps, given.stats.steps)
      // What a generation says itself comes first.
      const never = await tuned.generate(de, { maxTokens: 64, decoding: { type: 'bild', fallback: 1.01 } }).result
      t.is(never.stats.draftForwards, 0)
    }
  } finally {
    await Promise.all([tuned.dispose(), plain.dispose()])
  }
})

test('references count where the calibration file has them', async (t) => {
  const file = join(folder, 'pairs.jsonl')
  const lines = goldens.slice(0, 10).map(({ de, text }, at) => JSON.stringify({ source: de, reference: at < 5 ? text : 'Nothing at all.' }))
  await writeFile(file, lines.join('\n'))
  const { code, stdout, stderr } = await tune(file, '--metric', 'exact', '--json', '--output', join(folder, 'pairs.json'))
  t.is(code, 0, stderr)
  t.is(JSON.parse(stdout).score, 50)
})

test('what a replay gives is what writing gives', async (t) => {
  const model = await load(LARGE, { draft: SMALL })
  try {
    const cases = goldens.slice(0, 30).map(({ de }) => ({ source: de }))
    const settings = [4, 3, 2, 1].map((rollback) => ({ fallback: 0.2, cumulative: true, candidates: 0.1, rollback, maxDraft: 5 }))
    const together = (await sweep(model, cases, settings, 'bleu', { maxTokens: 64 })).points
    t.true(together.some(({ replayed }) => replayed > 0.2 && replayed < 1))
    for (const [at, setting] of settings.entries()) {
      const [alone] = (await sweep(model, cases, [setting], 'bleu', { maxTokens: 64 })).points
      t.is(alone.replayed, 0)
      const { score, largeCalls, rollbacks } = together[at]
      t.deepEqual({ score, largeCalls, rollbacks }, { score: alone.score, largeCalls: alone.largeCalls, rollbacks: alone.rollbacks })
    }
  } finally {
    await model.dispose()
  }
})

test('no setting is good enough for a floor that none reaches', async (t) => {
  const file = join(folder, 'few.txt')
  await writeFile(file, `${goldens.slice(0, 10).map(({ de }) => de).join('\n')}\n`)
  const args = ['tune', LARGE, file, '--draft', SMALL, '--fallback', '0', '--rollback', '9', '--floor', '1']
  const { code, stderr } = await trefoil(...args)
  t.is(code, 1)
  t.regex(stderr, /^trefoil: no setting reaches --floor 1; the best quality is 0\.\d+\n$/)
})

const MISTAKES = {
  'no draft': [['tune', LARGE, 'x.txt'], /--draft is missing/],
  'no calibration file': [['tune', LARGE, '--draft', SMALL], /a calibration file is missing/],
  'a floor above 1': [['tune', LARGE, 'x.txt', '--draft', SMALL, '--floor', '2'], /--floor is '2'; allowed: a number from 0 to 1/],
  'an unknown metric': [['tune', LARGE, 'x.txt', '--draft', SMALL, '--metric', 'ter'], /--metric is 'ter'; allowed: bleu, rouge, exact/],
  'an endless threshold': [['tune', LARGE, 'x.txt', '--draft', SMALL, '--rollback', 'Infinity'], /Infinity; allowed: finite/],
  'a file that is not there': [['tune', LARGE, 'no-such-file.txt', '--draft', SMALL], /no-such-file\.txt/]
}

for (const [title, [args, message]] of Object.entries(MISTAKES)) {
  test(`tune: ${title} is told in one line`, async (t) => {
    const { code, stdout, stderr } = await trefoil(...args)
    t.deepEqual([code, stdout], [1, ''])
    t.regex(stderr, message)
    t.is(stderr.split('\n').length, 2)
  })
}

const FILES = {
  'no JSON': ['{', /options\.tuned is '.*', which is no JSON; allowed: a JSON file whose bild has/],
  'no bild': ['{"fallback": 1}', /which has no bild/],
  'a threshold short': ['{"bild": {"fallback": 0.3, "rollback": 2}}', /whose bild lacks one of them/],
  'a negative threshold': ['{"bild": {"fallback": -1, "rollback": 2, "maxDraft": 7}}', /fallback is -1; allowed: a number from 0/],
  'a name that nobody knows': ['{"bild": {"fallback": 0.3, "rollback": 2, "maxDraft": 7, "alpha": 1}}', /unknown option 'alpha'/]
}

for (const [title, [content, message]] of Object.entries(FILES)) {
  test(`load: a tuned file with ${title} is an InvalidOptionError`, async (t) => {
    const file = join(folder, `${title}.json`)
    await writeFile(file, content)
    await t.throwsAsync(load(LARGE, { draft: SMALL, tuned: file }), { instanceOf: InvalidOptionError, message })
  })
}

test('load: a tuned file that is not there, or has no draft model, is an InvalidOptionError', async (t) => {
  const missing = { instanceOf: InvalidOptionError, message: /options\.tuned is 'nowhere\.json', which can't be read/ }
  await t.throwsAsync(load(LARGE, { draft: SMALL, tuned: 'nowhere.json' }), missing)
  await t.throwsAsync(load(LARGE, { tuned: 'nowhere.json' }), { instanceOf: InvalidOptionError, message: /without options\.draft/ })
  await t.throwsAsync(load(LARGE, { draft: SMALL, tuned: 3 }), { instanceOf: InvalidOptionError, message: /options\.tuned is 3/ })
})
