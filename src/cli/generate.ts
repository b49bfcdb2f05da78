/** `trefoil generate`: writes one text, as it comes. */

import { stdin, stdout } from 'node:process'

import type { ChatMessage } from '../options.js'
import type { Chunk } from '../result.js'
import { command, type Command } from './command.js'
import { inputText } from './input.js'
import { LEGEND, painter, wantsColours } from './painting.js'
import { generateOptions, LOADING_HELP, LOADING_OPTIONS, withModel, WRITING_HELP, WRITING_OPTIONS } from './writing.js'

const HELP = `Usage: trefoil generate MODEL [PROMPT] [options]

MODEL is a folder, a .gguf file, or a model on the hub: owner/name[:file].
PROMPT is read from standard input where it is left out or is -.

  --chat                      treat the prompt as a user's message
${WRITING_HELP}
  --show                      on a terminal, colour tokens by who wrote them: drafts green, the model's own cyan,
                              and what it put in place of a draft model's yellow
${LOADING_HELP}
  --json                      print the finished text, its tokens and figures as JSON
  --help                      print this

  trefoil generate models/de-en/large "Wo ist der Bahnhof?"
`

const OPTIONS = {
  ...WRITING_OPTIONS,
  ...LOADING_OPTIONS,
  chat: { type: 'boolean' },
  show: { type: 'boolean' },
  json: { type: 'boolean' }
} as const

const ABOUT = { summary: 'writes a text that continues or answers a prompt', help: HELP, options: OPTIONS }

/** The command. */
export const generate: Command = command(ABOUT, async ([source, argument, ...more], values, signal) => {
  if (source === undefined) throw new Error('a model is missing; usage: trefoil generate MODEL [PROMPT]')
  if (more.length > 0) throw new Error(`'${more[0]}' is one argument too many; a prompt with spaces needs quotes`)
  const [prompt, options] = [await promptOf(argument, values.chat, signal), generateOptions(values)]
  await withModel(source, values, signal, async (model) => {
    const generation = model.generate(prompt, { ...options, signal })
    if (values.json) {
      await generation.text()
      stdout.write(`${JSON.stringify(await generation.result)}\n`)
      return
    }
    const coloured = values.show && wantsColours()
    const paint = coloured ? painter(model) : (chunk: Chunk) => chunk.text
    for await (const chunk of generation) stdout.write(await paint(chunk))
    stdout.write(coloured ? `\n\n${LEGEND}\n` : '\n')
  })
})

async function promptOf(argument: string | undefined, chat: boolean | undefined, signal: AbortSignal): Promise<string | ChatMessage[]> {
  if (argument === undefined && stdin.isTTY) throw new Error('a prompt is missing; usage: trefoil generate MODEL PROMPT')
  const content = argument === undefined || argument === '-' ? await inputText(signal) : argument
  return chat ? [{ role: 'user', content }] : content
}
