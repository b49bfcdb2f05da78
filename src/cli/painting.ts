/** Text in colours that say who wrote it. */

import { stdout } from 'node:process'

import type { Model } from '../model.js'
import type { Chunk, ChunkToken } from '../result.js'

/** Colours of a terminal: a draft's tokens in green, the model's own in cyan, its corrections in yellow. */
const COLOURS: Readonly<Record<ChunkToken['from'], string>> = { draft: '32', model: '36', correction: '33' }

/** What the colours mean, for a reader. */
export const LEGEND: string = [
  coloured('drafted', 'draft'),
  coloured('the model’s own', 'model'),
  coloured('corrected by the model', 'correction')
].join(', ')

/** Whether standard output is a terminal that wants colours. */
export function wantsColours(): boolean {
  return stdout.isTTY && !process.env['NO_COLOR'] && process.env['TERM'] !== 'dumb'
}

/**
 * Colours the text of one generation, chunk by chunk. What comes out is each chunk's text to the letter: text that was
 * held back for a longer character or a stop string keeps the colour of its own token.
 */
export function painter(model: Pick<Model, 'detokenize'>): (chunk: Chunk) => Promise<string> {
  const ids: number[] = []
  const spans: { length: number; from: ChunkToken['from'] }[] = []
  let spelt = 0
  return async ({ text, tokens }) => {
    for (const { id, from } of tokens) {
      ids.push(id)
      // A token's spelling can depend on the one before it: a leading space is dropped at the start of a text.
      const whole = await model.detokenize(ids)
      // The bytes of an unfinished character count for the token that completes it.
      if (whole.endsWith('\uFFFD')) continue
      spans.push({ length: whole.length - spelt, from })
      spelt = whole.length
    }
    let painted = ''
    let at = 0
    for (let span = spans[0]; span && at < text.length; span = spans[0]) {
      const taken = Math.min(span.length, text.length - at)
      if (taken > 0) painted += coloured(text.slice(at, at + taken), span.from)
      at += taken
      span.length -= taken
      if (span.length <= 0) spans.shift()
    }
    return painted + text.slice(at)
  }
}

function coloured(text: string, from: ChunkToken['from']): string {
  return `\u001b[${COLOURS[from]}m${text}\u001b[0m`
}
