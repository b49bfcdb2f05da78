#!/usr/bin/env node
/**
 * The command line: finds the command, and turns whatever goes wrong into one line and an exit code.
 *
 * 0: done; 1: bad input or a failure, said on standard error; 130: interrupted.
 */

import { readFile } from 'node:fs/promises'
import { argv, exit, stderr, stdout } from 'node:process'

import { ask } from './cli/ask.js'
import { doctor } from './cli/doctor.js'
import { extract } from './cli/extract.js'
import { generate } from './cli/generate.js'
import { said, type Command } from './cli/command.js'
import { tune } from './cli/tune.js'
import { AbortedError } from './errors.js'

const COMMANDS: Readonly<Record<string, Command>> = { generate, ask, extract, tune, doctor }

const HELP = `Trefoil makes language models write faster without writing differently.

Usage: trefoil COMMAND …

${Object.entries(COMMANDS)
  .map(([name, { summary }]) => `  ${name.padEnd(12)}${summary}`)
  .join('\n')}

  trefoil COMMAND --help    says more about a command
  trefoil --version         says which version this is
`

async function main([name, ...rest]: string[]): Promise<void> {
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    stdout.write(HELP)
  } else if (name === '--version') {
    const { version } = JSON.parse(await readFile(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }
    stdout.write(`${version}\n`)
  } else {
    const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined
    if (!command) throw new Error(`unknown command '${name}'; allowed: ${Object.keys(COMMANDS).join(', ')}`)
    await command.run(rest)
  }
}

// A reader that has seen enough (`| head`) is no failure.
stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') exit(0)
  stderr.write(`trefoil: can't write to standard output: ${error.message}\n`, () => exit(1))
})

main(argv.slice(2)).catch((error: unknown) => {
  process.exitCode = AbortedError.isInstance(error) ? 130 : 1
  if (process.exitCode === 1) stderr.write(`trefoil: ${said(error)}\n`)
})
