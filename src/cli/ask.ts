/** `trefoil ask`: reads a document once and answers prompts about it. */

import { stdout } from 'node:process'
import { parseArgs } from 'node:util'

import { load } from '../load.js'
import type { Command } from './command.js'
import { DOCUMENT_HELP, line, textOf } from './document.js'
import { progressBar } from './progress.js'
import {
  generateOptions,
  interruptible,
  loadOptions,
  LOADING_HELP,
  LOADING_OPTIONS,
  WRITING_HELP,
  WRITING_OPTIONS
} from './writing.js'

const HELP = `Usage: trefoil ask MODEL DOCUMENT PROMPT… [options]

Reads the document once and answers all prompts in parallel, one line each, in their order.

MODEL is a folder, a .gguf file, or a model on the hub: owner/name[:file].
${DOCUMENT_HELP}
An encoder-decoder model's answer continues the prompt; any other model's continues document and prompt.

${WRITING_HELP}
${LOADING_HELP}
  --json                      print answers, their tokens and figures as JSON
  --help                      print this

  trefoil ask models/dst "user: i need a cheap hotel in the north ." "hotel area:" "hotel pricerange:"
`

const OPTIONS = {
  ...WRITING_OPTIONS,
  ...LOADING_OPTIONS,
  json: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' }
} as const

type Given = ReturnType<typeof parse>['values']

function parse(args: string[]) {
  return parseArgs({ args, options: OPTIONS, allowPositionals: true })
}

/** The command. */
export const ask: Command = {
  summary: 'answers prompts about a document, all in parallel',
  async run(args) {
    const { values, positionals } = parse(args)
    if (values.help) {
      stdout.write(HELP)
      return
    }
    const [source, document, ...prompts] = positionals
    const missing = source === undefined ? 'a model' : document === undefined ? 'a document' : 'a prompt'
    if (source === undefined || document === undefined || prompts.length === 0) {
      throw new Error(`${missing} is missing; usage: trefoil ask MODEL DOCUMENT PROMPT…`)
    }
    await interruptible(async (signal) => answer(source, await textOf(document), prompts, values, signal))
  }
}

async function answer(source: string, text: string, prompts: string[], values: Given, signal: AbortSignal): Promise<void> {
  const options = generateOptions(values)
  const bar = progressBar()
  const model = await load(source, { ...loadOptions(values), signal, onProgress: bar.show }).finally(bar.clear)
  try {
    const document = await model.read(text, { signal })
    const answers = document.ask(prompts, { ...options, signal })
    const texts = await answers.texts()
    if (values.json) {
      const results = await answers.result
      const { tokens, encoderForwards } = document
      const named = results.map((result, at) => Object.assign({ prompt: prompts[at] }, result))
      stdout.write(`${JSON.stringify({ document: { tokens, encoderForwards }, answers: named })}\n`)
      return
    }
    const width = Math.max(...prompts.map((prompt) => line(prompt).length))
    texts.forEach((text, at) => stdout.write(`${line(prompts[at] ?? '').padEnd(width)}  ${line(text)}\n`))
  } finally {
    await model.dispose()
  }
}
