/**
 * A pinned CUDA compiler, made from NVIDIA's wheels on PyPI: no GPU, driver or installed toolkit is needed.
 *
 *   eval "$(node scripts/cuda-toolkit.mjs)"    makes it where it is missing, and prints its environment
 *   node scripts/cuda-toolkit.mjs nccl         downloads NCCL where it is missing, and prints where the library is
 *
 * It lands in `~/.cache/trefoil/cuda-13.0`, or in the folder that `TREFOIL_CUDA` names; NCCL, which is loaded when it is
 * used and never built with, lands beside it. Needs python3 with pip, and gcc.
 */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, readFile, readdir, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { delimiter, join } from 'node:path'
import { pathToFileURL } from 'node:url'

const WHEELS = [
  'nvidia-cuda-nvcc==13.0.88',
  'nvidia-nvvm==13.0.88',
  'nvidia-cuda-crt==13.0.88',
  'nvidia-cuda-cccl==13.0.85',
  'nvidia-cuda-runtime==13.0.96',
  'nvidia-cuda-nvrtc==13.0.88',
  'nvidia-cublas==13.1.0.3',
  'nvidia-curand==10.4.0.35'
]

/** NCCL of the toolkit's time. */
const NCCL = ['nvidia-nccl-cu13==2.28.9']

/** Where the wheels put the toolkit in the folder that they are installed to. */
const INSIDE = join('nvidia', 'cu13')

/** Written last: a folder with other contents than these is made again. */
const STAMP = 'wheels.txt'

/** The architecture that candle's own kernels are compiled for; newer cards compile their PTX. */
const CAPABILITY = '80'

function folder() {
  return process.env.TREFOIL_CUDA || join(homedir(), '.cache', 'trefoil', 'cuda-13.0')
}

/** Where cargo compiles for CUDA. A folder of its own: cargo gives the libraries of all features one name, and takes one for the other. */
export function cudaTarget() {
  return process.env.TREFOIL_CUDA_TARGET || join(homedir(), '.cache', 'trefoil', 'target-cuda')
}

function command(name, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(name, args, { stdio: ['ignore', 2, 2] })
    child.once('error', (cause) => reject(new Error(`${name} can't be run: ${cause.message}`, { cause })))
    child.once('close', (code) => {
      if (code === 0) resolve()
      else reject(new Error(`${name} ${args.slice(0, 3).join(' ')} ended with code ${code}`))
    })
  })
}

const install = (wheels, target) =>
  command('python3', ['-m', 'pip', 'install', '--quiet', '--no-deps', '--no-compile', '--target', target, ...wheels])

/**
 * The driver's library is no wheel: it comes with the driver. What links it is given one with the same names and
 * nothing in them.
 */
async function driver(home) {
  const header = await readFile(join(home, 'include', 'cuda.h'), 'utf8')
  const names = new Set([...header.matchAll(/\b(cu[A-Z]\w+)\s*\(/g)].map(([, name]) => name))
  // A header's newer name for a function is a macro; both are asked for.
  for (const [, name] of header.matchAll(/^\s*#\s*define\s+cu\w+\s+(?:__CUDA_API_\w+\()?(cu[A-Z]\w+)/gm)) {
    for (const suffix of ['', '_ptds', '_ptsz', '_v2', '_v2_ptds', '_v2_ptsz']) names.add(name + suffix)
  }
  const source = join(home, 'libcuda.s')
  await writeFile(source, [...names].map((name) => `.globl ${name}\n${name}:\n`).join(''))
  const soname = '-Wl,-soname,libcuda.so.1'
  await command('gcc', ['-shared', '-nostdlib', soname, '-o', join(home, 'lib', 'libcuda.so'), source])
}

/** Linkers ask for `libX.so` in `lib64`; wheels have `libX.so.N` in `lib`. */
async function link(home) {
  await symlink('lib', join(home, 'lib64'))
  for (const file of await readdir(join(home, 'lib'))) {
    const name = /^(lib\w+\.so)\.\d+$/.exec(file)?.[1]
    if (name && !existsSync(join(home, 'lib', name))) await symlink(file, join(home, 'lib', name))
  }
}

async function made(wheels, root) {
  try {
    return (await readFile(join(root, STAMP), 'utf8')) === wheels.join('\n')
  } catch {
    return false
  }
}

/** Installs wheels in a folder where they are missing; `finish` makes of them what is needed. */
async function make(wheels, root, what, finish) {
  if (await made(wheels, root)) return
  console.error(`making ${what} in ${root}`)
  // Made beside and renamed, so that an interrupted run leaves nothing that looks finished.
  const half = `${root}.${process.pid}`
  try {
    await mkdir(half, { recursive: true })
    await install(wheels, half)
    await finish(half)
    await writeFile(join(half, STAMP), wheels.join('\n'))
    await rm(root, { recursive: true, force: true })
    await rename(half, root)
  } finally {
    await rm(half, { recursive: true, force: true })
  }
}

/** Downloads NCCL where it is missing, and resolves to its library. */
export async function nccl() {
  const root = `${folder()}-nccl`
  await make(NCCL, root, 'NCCL', async () => {})
  return join(root, 'nvidia', 'nccl', 'lib', 'libnccl.so.2')
}

/** Makes the toolkit where it is missing, and resolves to the environment that compiles with it. */
export async function cudaToolkit() {
  const root = folder()
  await make(WHEELS, root, 'the CUDA compiler', async (half) => {
    await link(join(half, INSIDE))
    await driver(join(half, INSIDE))
  })
  const home = join(root, INSIDE)
  return {
    CUDA_HOME: home,
    CUDA_PATH: home,
    CUDA_ROOT: home,
    CUDA_TOOLKIT_ROOT_DIR: home,
    CUDA_COMPUTE_CAP: CAPABILITY,
    // candle's kernels too: a fifth of the bytes.
    NVCC_APPEND_FLAGS: '--compress-mode=size',
    PATH: [join(home, 'bin'), process.env.PATH].join(delimiter)
  }
}

async function main([what]) {
  if (what === 'nccl') return console.log(await nccl())
  for (const [name, value] of Object.entries(await cudaToolkit())) {
    console.log(`export ${name}='${value.replaceAll("'", `'\\''`)}'`)
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  main(process.argv.slice(2)).catch((error) => {
    console.error(`cuda-toolkit: ${error.message}`)
    process.exitCode = 1
  })
}
