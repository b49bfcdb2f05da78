/**
 * Builds the package: `npm run build [-- --profile dist]`.
 *
 * Compiles the addon with cargo, puts it and its generated loader and types at the root, and compiles `src` twice, to
 * `esm` and `cjs`. Cargo and its messages are left to themselves; what is up to date costs a second.
 */
import { spawn } from 'node:child_process'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const { resolve } = createRequire(import.meta.url)

/** Runs a command in the repository and resolves when it ended well. */
function run(command, ...args) {
  return new Promise((done, fail) => {
    const child = spawn(command, args, { cwd: ROOT, stdio: 'inherit' })
    child.once('error', fail)
    child.once('close', (code, signal) => {
      if (code === 0) done()
      else fail(new Error(`${command} ${args[0]} ended with ${signal ?? `code ${code}`}`))
    })
  })
}

/** Runs a program of an installed package. */
const tool = (file, ...args) => run(process.execPath, join(dirname(resolve(`${file.package}/package.json`)), file.path), ...args)

async function needCargo() {
  await run('cargo', '--version').catch((error) => {
    if (error.code !== 'ENOENT') throw error
    throw new Error('cargo is not installed; Trefoil needs Rust 1.88 or later, see https://rustup.rs')
  })
}

/** The addon with its loader and types. */
async function addon(profile) {
  await tool(
    { package: '@napi-rs/cli', path: 'dist/cli.js' },
    ...['build', '--platform', '--profile', profile],
    ...['--manifest-path', 'crates/node/Cargo.toml', '--package-json-path', 'package.json', '--output-dir', '.'],
    ...['--js', 'index.js', '--dts', 'index.d.ts']
  )
}

/** One compilation of `src`, in a folder that says which kind of module it holds. */
async function compile(folder, type) {
  await rm(join(ROOT, folder), { recursive: true, force: true })
  await tool({ package: 'typescript', path: 'bin/tsc' }, '--project', `tsconfig.${folder}.json`)
  await mkdir(join(ROOT, folder), { recursive: true })
  await writeFile(join(ROOT, folder, 'package.json'), `${JSON.stringify({ type, sideEffects: false })}\n`)
}

async function main() {
  const { values } = parseArgs({ options: { profile: { type: 'string', default: 'release' } } })
  await needCargo()
  await addon(values.profile)
  await compile('esm', 'module')
  await compile('cjs', 'commonjs')
}

main().catch((error) => {
  console.error(`build: ${error.message}`)
  process.exitCode = 1
})
