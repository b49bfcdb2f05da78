/** `trefoil ask`: reads a document once and answers prompts about it. */

import { stdout } from 'node:process'

import { command, type Command } from './command.js'
import { DOCUMENT_HELP, line, textOf } from './input.js'
import { generateOptions, LOADING_HELP, LOADING_OPTIONS, withModel, WRITING_HELP, WRITING_OPTIONS } from './writing.js'

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

const OPTIONS = { ...WRITING_OPTIONS, ...LOADING_OPTIONS, json: { type: 'boolean' } } as const

const ABOUT = { summary: 'answers prompts about a document, all in parallel', help: HELP, options: OPTIONS }

/** The command. */
export const ask: Command = command(ABOUT, async ([source, document, ...prompts], values, signal) => {
  const missing = source === undefined ? 'a model' : document === undefined ? 'a document' : 'a prompt'
  if (source === undefined || document === undefined || prompts.length === 0) {
    throw new Error(`${missing} is missing; usage: trefoil ask MODEL DOCUMENT PROMPT…`)
  }
  // Read before the model is loaded: a mistake in them should not cost a wait.
  const [text, options] = [await textOf(document, signal), generateOptions(values)]
  await withModel(source, values, signal, async (model) => {
    const encoded = await model.read(text, { signal })
    const answers = encoded.ask(prompts, { ...options, signal })
    const texts = await answers.texts()
    if (values.json) {
      const results = await answers.result
      const { tokens, encoderForwards } = encoded
      const named = results.map((result, at) => Object.assign({ prompt: prompts[at] }, result))
      stdout.write(`${JSON.stringify({ document: { tokens, encoderForwards }, answers: named })}\n`)
      return
    }
    const width = Math.max(...prompts.map((prompt) => line(prompt).length))
    texts.forEach((said, at) => stdout.write(`${line(prompts[at] ?? '').padEnd(width)}  ${line(said)}\n`))
  })
})
