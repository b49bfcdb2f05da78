/** What the addons link. */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { ROOT } from './support/models.mjs'

const CUDA = /^lib(?:cuda|cudart|cublas|cublasLt|nvrtc|curand|nccl|nvidia)\b/

/** The libraries that an ELF file needs, as readelf says; undefined where there is no readelf. */
function needed(file) {
  const { error, status, stdout, stderr } = spawnSync('readelf', ['--dynamic', '--wide', file], { encoding: 'utf8' })
  if (error) return undefined
  if (status !== 0) throw new Error(stderr)
  return [...stdout.matchAll(/\(NEEDED\).*\[(.+)\]/g)].map(([, name]) => name)
}

test('the addon never links CUDA', async (t) => {
  const addons = (await readdir(ROOT)).filter((name) => name.endsWith('.node'))
  t.true(addons.length > 0)
  for (const name of addons.filter((name) => name.includes('linux'))) {
    const libraries = needed(join(ROOT, name))
    if (!libraries) return t.log('readelf is missing: not looked at')
    t.true(libraries.includes('libc.so.6') || libraries.some((library) => library.startsWith('libc.musl')))
    t.deepEqual(libraries.filter((library) => CUDA.test(library)), [])
  }
})

test('the CUDA package is what its main file and its version say', async (t) => {
  const read = async (path) => JSON.parse(await readFile(join(ROOT, path), 'utf8'))
  const { main, files, version } = await read('npm/cuda/package.json')
  t.deepEqual(files, [main])
  t.is(version, (await read('package.json')).version)
  const addon = join(ROOT, 'npm/cuda', main)
  if (!existsSync(addon)) return void t.log('not built: npm run build -- --features cuda')
  const libraries = needed(addon)
  if (!libraries) return void t.log('readelf is missing: not looked at')
  t.true(libraries.includes('libcuda.so.1'))
})
