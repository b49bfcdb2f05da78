/**
 * Everything that must hold, in one command.
 *
 *   npm test                  all phases
 *   npm test -- rust ava      only these
 *
 * Streams each phase's output and ends with `N passed, N failed`: the tests of cargo and of AVA, and one
 * failure for every phase that broke without naming a failed test. The exit code says the same.
 */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath, pathToFileURL } from 'node:url'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

const PHASES = [
  {
    name: 'rust',
    commands: [['cargo', 'test', '--release', '--workspace', '--no-fail-fast']],
    count: cargoTests
  },
  { name: 'build', commands: [['npm', 'run', 'build']] },
  {
    name: 'ava',
    commands: [['npx', '--no-install', 'ava', '--tap']],
    count: (output) => sum(output.matchAll(/^# pass (\d+)\n(?:# skip \d+\n)?# fail (\d+)/gm))
  },
  {
    name: 'lint',
    commands: [
      ['cargo', 'fmt', '--all', '--check'],
      ['cargo', 'clippy', '--release', '--workspace', '--all-targets', '--', '--deny', 'warnings'],
      ['npm', 'run', 'lint']
    ],
    // A toolchain may come without its linters; tests do not depend on them.
    optional: ['fmt', 'clippy']
  }
]

/** The tests that cargo ran. */
export function cargoTests(output) {
  return sum(output.matchAll(/^test result: .*?(\d+) passed; (\d+) failed/gm))
}

/** Adds up pairs of counts. */
export function sum(matches) {
  const total = { passed: 0, failed: 0 }
  for (const [, passed, failed] of matches) {
    total.passed += Number(passed)
    total.failed += Number(failed)
  }
  return total
}

/** Runs a command in the repository, passes its output through and resolves to its exit code and output. */
function run([command, ...args]) {
  console.log(`\n$ ${[command, ...args].join(' ')}`)
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      cwd: ROOT,
      stdio: ['ignore', 'pipe', 'inherit'],
      // npm and npx are scripts on Windows, which only a shell can start.
      shell: process.platform === 'win32'
    })
    let output = ''
    child.stdout.setEncoding('utf8').on('data', (text) => {
      output += text
      process.stdout.write(text)
    })
    child.once('error', (error) => resolve({ code: error.code, output }))
    child.once('close', (code) => resolve({ code, output }))
  })
}

async function installed(tool) {
  const { code } = await run(['cargo', tool, '--version'])
  return code === 0
}

async function runPhase({ name, commands, count, optional = [] }) {
  console.log(`\n== ${name}`)
  const total = { passed: 0, failed: 0 }
  for (const command of commands) {
    if (optional.includes(command[1]) && !(await installed(command[1]))) {
      console.log(`cargo ${command[1]} is not installed: left out`)
      continue
    }
    const { code, output } = await run(command)
    const counted = count?.(output) ?? { passed: 0, failed: 0 }
    // Tests that should have run and did not are a failure, whatever the exit code says.
    const silent = count !== undefined && counted.passed + counted.failed === 0
    if ((code !== 0 && counted.failed === 0) || silent) {
      console.log(`${name}: ${command.join(' ')} ${silent && code === 0 ? 'ran no test' : `ended with ${code}`}`)
      counted.failed += 1
    }
    total.passed += counted.passed
    total.failed += counted.failed
  }
  return total
}

/** Runs the phases that are named, or all, and prints and reports what they came to. */
export async function runPhases(phases, names) {
  const unknown = names.find((name) => !phases.some((phase) => phase.name === name))
  if (unknown) throw new Error(`unknown phase ${JSON.stringify(unknown)}; phases: ${phases.map((p) => p.name).join(', ')}`)
  if (!existsSync(`${ROOT}node_modules`)) await run(['npm', 'ci', '--no-audit', '--no-fund'])
  const total = { passed: 0, failed: 0 }
  const lines = []
  for (const phase of phases) {
    if (names.length > 0 && !names.includes(phase.name)) continue
    const start = performance.now()
    const { passed, failed } = await runPhase(phase)
    total.passed += passed
    total.failed += failed
    const seconds = ((performance.now() - start) / 1000).toFixed(0)
    lines.push(`${phase.name.padEnd(8)} ${failed > 0 ? 'failed' : 'ok'}, ${passed} passed, ${failed} failed, ${seconds} s`)
  }
  console.log(`\n${lines.join('\n')}\n${total.passed} passed, ${total.failed} failed`)
  process.exitCode = total.failed > 0 ? 1 : 0
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  runPhases(PHASES, process.argv.slice(2)).catch((error) => {
    console.error(`test: ${error.message}`)
    process.exitCode = 1
  })
}
