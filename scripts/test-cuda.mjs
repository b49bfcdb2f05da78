/**
 * What can be known of the CUDA path without a card.
 *
 *   npm run test:cuda                        all phases
 *   npm run test:cuda -- emulate assemble    only these
 *
 * The kernels run on this CPU against their twins, alone and in whole models, on one card and on several; what is called
 * of NCCL is there; they assemble for every architecture; and the workspace builds, addon included. Needs g++ and python3
 * with pip: the compiler is made where it is missing. What candle compiles for CUDA takes minutes, so its folder outlives
 * the checkout: `TREFOIL_CUDA_TARGET`, or `~/.cache/trefoil/target-cuda`.
 */
import { cudaTarget, cudaToolkit, nccl } from './cuda-toolkit.mjs'
import { cargoTests, runPhases, sum } from './test.mjs'

const CUDA = ['engine', 'node', 'check'].map((crate) => `trefoil-${crate}/cuda,trefoil-${crate}/nccl`).join()
const EMULATE = ['models', 'decode', 'check'].map((crate) => `trefoil-${crate}/emulate,trefoil-${crate}/nccl`).join()
/** The crates with tests on an emulated card. */
const EMULATED = ['kernels', 'models', 'decode', 'check'].flatMap((crate) => ['-p', `trefoil-${crate}`])

const PHASES = [
  {
    name: 'emulate',
    commands: [
      ['cargo', 'test', '--release', '--no-fail-fast', ...EMULATED, '--features', EMULATE, '--test', 'emulated', '--test', 'devices', '--test', 'sharded'],
      ['cargo', 'test', '--release', '-p', 'trefoil-kernels', '--features', 'trefoil-kernels/emulate,trefoil-kernels/nccl', '--lib', '--', '--include-ignored', 'nccl', 'recorder']
    ],
    count: cargoTests
  },
  {
    name: 'assemble',
    commands: [['node', 'scripts/cuda-assemble.mjs']],
    count: (output) => sum(output.matchAll(/^assembled: (\d+) passed, (\d+) failed/gm))
  },
  {
    name: 'build',
    commands: [
      ['cargo', 'build', '--release', '--workspace', '--features', CUDA],
      ['npm', 'run', 'build', '--', '--features', 'cuda,nccl']
    ]
  },
  {
    name: 'lint',
    commands: [
      ['cargo', 'clippy', '--release', ...EMULATED, '--all-targets', '--features', EMULATE, '--', '--deny', 'warnings'],
      ['cargo', 'clippy', '--release', '--workspace', '--all-targets', '--features', `${CUDA},${EMULATE}`, '--', '--deny', 'warnings']
    ],
    optional: ['clippy']
  }
]

async function main(names) {
  Object.assign(process.env, await cudaToolkit(), { CARGO_TARGET_DIR: cudaTarget(), TREFOIL_NCCL: await nccl() })
  await runPhases(PHASES, names)
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`test: ${error.message}`)
  console.log('0 passed, 1 failed')
  process.exitCode = 1
})
