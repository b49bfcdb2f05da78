/** The package from outside: what README says works, and both kinds of modules get the same. */
import { spawn } from 'node:child_process'
import { mkdtemp, mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import * as imported from '../esm/index.js'
import { LARGE, ROOT } from './support/models.mjs'

const require = createRequire(import.meta.url)

let project
test.before(async () => {
  project = await mkdtemp(join(tmpdir(), 'trefoil-test-'))
  await mkdir(join(project, 'node_modules'))
  await symlink(ROOT, join(project, 'node_modules/trefoil'), 'junction')
  await symlink(join(ROOT, 'models'), join(project, 'models'), 'junction')
})
test.after.always(() => rm(project, { recursive: true, force: true }))

async function run(file, content) {
  await writeFile(join(project, file), content)
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [file], { cwd: project })
    const out = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr']) child[name].setEncoding('utf8').on('data', (text) => (out[name] += text))
    child.once('close', (code) => resolve({ code, ...out }))
  })
}

test('the example of README runs as it stands', async (t) => {
  const readme = await readFile(join(ROOT, 'README.md'), 'utf8')
  const [, example] = /```js\n(.*?)```/s.exec(readme) ?? []
  t.truthy(example)
  const { code, stdout, stderr } = await run('example.mjs', example)
  t.is(stderr, '')
  t.is(code, 0)
  t.regex(stdout, /[A-Z].*[.?]\n\d+ tokens in \d+ steps/)
})

test('require gives what import gives', async (t) => {
  const required = require('../cjs/index.js')
  t.deepEqual(Object.keys(required).toSorted(), Object.keys(imported).toSorted())
  const { code, stdout, stderr } = await run(
    'example.cjs',
    `const { load } = require('trefoil')
    load('models/de-en/large').then(async (model) => {
      console.log(await model.generate('Wo ist der Bahnhof?').text())
      await model.dispose()
    })`
  )
  t.is(stderr, '')
  t.is(code, 0)
  const model = await imported.load(LARGE)
  t.is(stdout, `${await model.generate('Wo ist der Bahnhof?').text()}\n`)
  await model.dispose()
})

test('a process ends by itself once its models are disposed, or dropped in the middle of a text', async (t) => {
  const { code, stderr } = await run(
    'dropped.mjs',
    `import { load } from 'trefoil'
    const model = await load('models/de-en/large')
    for await (const _ of model.generate('Wo ist der Bahnhof?', { temperature: 5, maxTokens: 4000 })) process.exit(0)`
  )
  t.is(stderr, '')
  t.is(code, 0)
})

test('the package exports nothing by accident', (t) => {
  t.deepEqual(Object.keys(imported).toSorted(), [
    'AbortedError',
    'ContextOverflowError',
    'DeviceError',
    'DisposedError',
    'DownloadError',
    'ExtractionError',
    'InternalError',
    'InvalidOptionError',
    'ModelLoadError',
    'OutOfMemoryError',
    'OverloadedError',
    'TrefoilError',
    'load'
  ])
})
