/**
 * Assembles every kernel for every architecture that it ships for, and looks at what PTX alone hides: registers.
 *
 *   node scripts/cuda-assemble.mjs
 *
 * A kernel that spills more than SPILLED bytes of registers to memory is a failure. The last line counts.
 */
import { spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { cudaToolkit } from './cuda-toolkit.mjs'

const SOURCE = fileURLToPath(new URL('../crates/kernels/src', import.meta.url))
/** As crates/kernels/build.rs has them. */
const ARCHITECTURES = ['80', '90', '100']
/** Bytes of registers that a kernel may store to memory. */
const SPILLED = 64

function assemble(env, architecture, output) {
  const args = ['-cubin', '-O3', '-std=c++17', '-fmad=false', `-arch=sm_${architecture}`, '-Xptxas', '-v', '-I', '.']
  return new Promise((resolve, reject) => {
    const child = spawn(join(env.CUDA_HOME, 'bin', 'nvcc'), [...args, '-o', output, 'kernels.cu'], {
      cwd: SOURCE,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'inherit', 'pipe']
    })
    let said = ''
    child.stderr.setEncoding('utf8').on('data', (text) => {
      said += text
    })
    child.once('error', reject)
    child.once('close', (code) => {
      if (code === 0) resolve(said)
      else reject(new Error(`nvcc ended with code ${code} for sm_${architecture}:\n${said}`))
    })
  })
}

/** The kernels that ptxas names, with the bytes that each spills. */
function spills(said) {
  const found = said.matchAll(/Function properties for (\w+)\s+\d+ bytes stack frame, (\d+) bytes spill stores/g)
  return [...found].map(([, kernel, bytes]) => ({ kernel, bytes: Number(bytes) }))
}

const env = await cudaToolkit()
const folder = await mkdtemp(join(tmpdir(), 'trefoil-assemble-'))
let passed = 0
let failed = 0
try {
  for (const architecture of ARCHITECTURES) {
    const kernels = spills(await assemble(env, architecture, join(folder, `${architecture}.cubin`)))
    const wasteful = kernels.filter(({ bytes }) => bytes > SPILLED)
    for (const { kernel, bytes } of wasteful) console.log(`sm_${architecture}: ${kernel} spills ${bytes} bytes`)
    const most = Math.max(...kernels.map(({ bytes }) => bytes))
    console.log(`sm_${architecture}: ${kernels.length} kernels, at most ${most} bytes spilled; ${SPILLED} are allowed`)
    passed += kernels.length - wasteful.length
    failed += wasteful.length + (kernels.length === 0 ? 1 : 0)
  }
} catch (error) {
  console.log(error.message)
  failed += 1
} finally {
  await rm(folder, { recursive: true, force: true })
}
console.log(`assembled: ${passed} passed, ${failed} failed`)
process.exitCode = failed > 0 ? 1 : 0
