/** What commands that read a document have in common. */

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { stdin } from 'node:process'
import { text as readAll } from 'node:stream/consumers'

/** Help on what `textOf` takes. */
export const DOCUMENT_HELP = `DOCUMENT is a file with text, - for standard input, or else the text itself.`

/** The text that an argument means. */
export async function textOf(document: string): Promise<string> {
  if (document === '-') return readAll(stdin)
  return existsSync(document) ? readFile(document, 'utf8') : document
}

/** A text in one line. */
export function line(text: string): string {
  return text.trim().replaceAll(/\s+/g, ' ')
}
