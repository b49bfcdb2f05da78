/**
 * Builds the package.
 *
 *   npm run build [-- --profile dist] [-- --features cuda]
 *
 * The addon is compiled by cargo and put at the root under its platform's name, with the loader and the types that
 * napi's generator makes of it; `src` is compiled twice, to `esm` and `cjs`. Cargo is called directly and not through
 * `napi build`, which names a target and so compiles every dependency a second time beside what `cargo test` has.
 * What is up to date costs a second or two.
 *
 * With the feature `cuda` the addon becomes the package `npm/cuda` and the one at the root stays as it is: that one runs
 * everywhere, and never links CUDA. The compiler is made where it is missing, and the package is linked into
 * node_modules, so that it is found here as where it is installed.
 */
import { spawn } from 'node:child_process'
import { copyFile, mkdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { cudaTarget, cudaToolkit } from './cuda-toolkit.mjs'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const CRATE = 'trefoil-node'
const CUDA = 'npm/cuda'
const LIBRARIES = { win32: 'trefoil_node.dll', darwin: 'libtrefoil_node.dylib' }

/** Runs a command in the repository; resolves to its output where `quiet`, and passes it through otherwise. */
function run(command, args, { env = {}, quiet = false } = {}) {
  return new Promise((resolve, reject) => {
    const stdio = ['ignore', quiet ? 'pipe' : 'inherit', 'inherit']
    const child = spawn(command, args, { cwd: ROOT, stdio, env: { ...process.env, ...env } })
    let output = ''
    child.stdout?.setEncoding('utf8').on('data', (text) => {
      output += text
    })
    child.once('error', (cause) => reject(new Error(missing(command, cause), { cause })))
    child.once('close', (code, signal) => {
      if (code === 0) resolve(output)
      else reject(new Error(`${command} ${args[0]} ended with ${signal ?? `code ${code}`}`))
    })
  })
}

function missing(command, cause) {
  if (command !== 'cargo' || cause.code !== 'ENOENT') return `${command} can't be run: ${cause.message}`
  return 'cargo is not installed; Trefoil needs Rust 1.89 or later, see https://rustup.rs'
}

async function targetFolder() {
  const metadata = await run('cargo', ['metadata', '--no-deps', '--format-version', '1'], { quiet: true })
  return JSON.parse(metadata).target_directory
}

/** The platform's name in the addon's file name, as the generated loader asks for it. */
function platform() {
  const { platform, arch } = process
  if (platform === 'darwin') return `darwin-${arch}`
  if (platform === 'win32') return `win32-${arch}-msvc`
  const glibc = process.report.getReport().header.glibcVersionRuntime
  return `${platform}-${arch}-${glibc ? 'gnu' : 'musl'}`
}

/** Compiles the addon; gives its file, and the folder of the types that were written while it was compiled. */
async function compileAddon(profile, features) {
  const target = features.includes('cuda') ? cudaTarget() : await targetFolder()
  const types = join(target, 'napi-types', profile)
  await mkdir(types, { recursive: true })
  const env = { NAPI_TYPE_DEF_TMP_FOLDER: types }
  // The types are written while the crate compiles; cargo alone would not know that they are gone.
  if (!existsSync(join(types, CRATE))) env.NAPI_FORCE_BUILD_TREFOIL_NODE = String(Date.now())
  if (features.includes('cuda')) Object.assign(env, await cudaToolkit())
  const chosen = features.length > 0 ? ['--features', features.join(',')] : []
  await run('cargo', ['build', '--package', CRATE, '--profile', profile, '--target-dir', target, ...chosen], { env })
  return { built: join(target, profile, LIBRARIES[process.platform] ?? 'libtrefoil_node.so'), types }
}

/** Puts a file in another's place. Renamed, because overwriting an addon under a process that has it loaded would end that process. */
async function put(file, place) {
  await copyFile(file, `${place}.new`)
  await rename(`${place}.new`, place)
}

/** The package for CUDA, found from here as where it is installed. */
async function buildCuda(profile, features) {
  const { built } = await compileAddon(profile, features)
  const { name, main } = JSON.parse(await readFile(join(ROOT, CUDA, 'package.json'), 'utf8'))
  await put(built, join(ROOT, CUDA, main))
  const link = join(ROOT, 'node_modules', name)
  await rm(link, { recursive: true, force: true })
  await symlink(join(ROOT, CUDA), link, 'junction')
}

/** The addon, its loader `index.js` and its types `index.d.ts`. */
async function buildAddon(profile, features) {
  const { built, types } = await compileAddon(profile, features)
  const { napi, version } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8'))
  await put(built, join(ROOT, `${napi.binaryName}.${platform()}.node`))

  const { generateTypeDef, writeJsBinding } = await import('@napi-rs/cli')
  const { exports, dts } = await generateTypeDef({ typeDefDir: types, cwd: ROOT })
  await writeFile(join(ROOT, 'index.d.ts'), dts)
  await writeJsBinding({
    platform: true,
    idents: exports,
    jsBinding: 'index.js',
    binaryName: napi.binaryName,
    packageName: napi.packageName,
    version,
    outputDir: ROOT
  })
}

/** Compiles `src` to a folder whose own package.json says which kind of module it holds. */
async function compile(folder, type) {
  await rm(join(ROOT, folder), { recursive: true, force: true })
  await run(process.execPath, [join(ROOT, 'node_modules/typescript/bin/tsc'), '--project', `tsconfig.${folder}.json`])
  await writeFile(join(ROOT, folder, 'package.json'), `${JSON.stringify({ type, sideEffects: false })}\n`)
}

/** Builds everything; `profile` is one of cargo's, `features` are those of the addon's crate. */
export async function build(profile = 'release', features = []) {
  if (features.includes('cuda')) return buildCuda(profile, features)
  await buildAddon(profile, features)
  await Promise.all([compile('esm', 'module'), compile('cjs', 'commonjs')])
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const options = { profile: { type: 'string', default: 'release' }, features: { type: 'string', default: '' } }
  const { values } = parseArgs({ options })
  build(values.profile, values.features.split(',').filter(Boolean)).catch((error) => {
    console.error(`build: ${error.message}`)
    process.exitCode = 1
  })
}
