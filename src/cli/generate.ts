/** `trefoil generate`: writes one text, as it comes. */

import { stdin, stdout } from 'node:process'
import { text as readAll } from 'node:stream/consumers'
import { parseArgs } from 'node:util'

import { load } from '../load.js'
import type { Model } from '../model.js'
import type { ChatMessage, GenerateOptions, LoadOptions } from '../options.js'
import type { Chunk } from '../result.js'
import { given, numberOf, type Command } from './command.js'
import { progressBar } from './progress.js'

const HELP = `Usage: trefoil generate MODEL [PROMPT] [options]

MODEL is a folder, a .gguf file, or a model on the hub: owner/name[:file].
PROMPT is read from standard input where it is left out or is -.

  --chat                      treat the prompt as a user's message
  --max-tokens N              stop after so many tokens
  --stop TEXT                 stop before this text; can be given several times
  --temperature X             0, the default, always takes the likeliest token
  --top-k N, --top-p X, --min-p X
                              draw from the likeliest tokens only
  --repetition-penalty X      above 1, repeat less
  --seed N                    the same seed writes the same text
  --decoding NAME             how to decode: plain, lookahead
  --show                      colour the tokens that a draft had first
  --device NAME               where to run: auto, cpu
  --threads N                 threads of a step
  --context N                 tokens that prompt and text may have together
  --offline                   never ask the hub
  --json                      print the finished text, its tokens and figures as JSON
  --help                      print this

  trefoil generate models/de-en/large "Wo ist der Bahnhof?"
`

const OPTIONS = {
  chat: { type: 'boolean' },
  'max-tokens': { type: 'string' },
  stop: { type: 'string', multiple: true },
  temperature: { type: 'string' },
  'top-k': { type: 'string' },
  'top-p': { type: 'string' },
  'min-p': { type: 'string' },
  'repetition-penalty': { type: 'string' },
  seed: { type: 'string' },
  decoding: { type: 'string' },
  show: { type: 'boolean' },
  device: { type: 'string' },
  threads: { type: 'string' },
  context: { type: 'string' },
  offline: { type: 'boolean' },
  json: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' }
} as const

type Values = ReturnType<typeof parse>['values']

function parse(args: string[]) {
  return parseArgs({ args, options: OPTIONS, allowPositionals: true })
}

/** The command. */
export const generate: Command = {
  summary: 'writes a text that continues or answers a prompt',
  async run(args) {
    const { values, positionals } = parse(args)
    if (values.help) {
      stdout.write(HELP)
      return
    }
    const [source, prompt, ...more] = positionals
    if (source === undefined) throw new Error('a model is missing; usage: trefoil generate MODEL [PROMPT]')
    if (more.length > 0) throw new Error(`'${more[0]}' is one argument too many; a prompt with spaces needs quotes`)
    await interruptible(async (signal) => write(source, await promptOf(prompt, values.chat), values, signal))
  }
}

async function write(source: string, prompt: string | ChatMessage[], values: Values, signal: AbortSignal): Promise<void> {
  // Read before the model is loaded: a mistake in them should not cost a wait.
  const options = generateOptions(values)
  const bar = progressBar()
  const model = await load(source, { ...loadOptions(values), signal, onProgress: bar.show }).finally(bar.clear)
  try {
    const generation = model.generate(prompt, { ...options, signal })
    if (values.json) {
      await generation.text()
      stdout.write(`${JSON.stringify(await generation.result)}\n`)
      return
    }
    const paint = values.show ? painter(model) : (chunk: Chunk) => chunk.text
    for await (const chunk of generation) stdout.write(await paint(chunk))
    stdout.write('\n')
  } finally {
    await model.dispose()
  }
}

/**
 * Spells a chunk token by token, those of a draft in green. A character that several tokens share comes out as they
 * hold it; without `--show` the text is exact.
 */
function painter(model: Model): (chunk: Chunk) => Promise<string> {
  const ids: number[] = []
  let shown = ''
  return async ({ tokens }) => {
    let painted = ''
    for (const { id, from } of tokens) {
      ids.push(id)
      // A token's spelling can depend on the one before it: a leading space is dropped at the start of a text.
      const text = await model.detokenize(ids)
      const piece = text.slice(shown.length)
      painted += from === 'draft' ? `\u001b[32m${piece}\u001b[0m` : piece
      shown = text
    }
    return painted
  }
}

/** Runs `work` with a signal that Ctrl-C aborts; a second Ctrl-C ends the process as usual. */
async function interruptible(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const controller = new AbortController()
  const interrupt = (): void => controller.abort()
  process.once('SIGINT', interrupt)
  try {
    await work(controller.signal)
  } finally {
    process.off('SIGINT', interrupt)
  }
}

async function promptOf(argument: string | undefined, chat: boolean | undefined): Promise<string | ChatMessage[]> {
  if (argument === undefined && stdin.isTTY) throw new Error('a prompt is missing; usage: trefoil generate MODEL PROMPT')
  const content = argument === undefined || argument === '-' ? await readAll(stdin) : argument
  return chat ? [{ role: 'user', content }] : content
}

function loadOptions(values: Values): LoadOptions {
  return given({
    // The engine knows which devices there are.
    device: values.device as LoadOptions['device'],
    threads: numberOf('threads', values.threads),
    contextLength: numberOf('context', values.context),
    offline: values.offline
  })
}

function generateOptions(values: Values): GenerateOptions {
  return given({
    maxTokens: numberOf('max-tokens', values['max-tokens']),
    stop: values.stop,
    temperature: numberOf('temperature', values.temperature),
    topK: numberOf('top-k', values['top-k']),
    topP: numberOf('top-p', values['top-p']),
    minP: numberOf('min-p', values['min-p']),
    repetitionPenalty: numberOf('repetition-penalty', values['repetition-penalty']),
    seed: numberOf('seed', values.seed),
    decoding: values.decoding as GenerateOptions['decoding']
  })
}
