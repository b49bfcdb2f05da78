/** What commands read: files, and standard input. */

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { stdin } from 'node:process'
import { addAbortSignal } from 'node:stream'
import { text as readAll } from 'node:stream/consumers'

import { AbortedError } from '../errors.js'

/** Help on what `textOf` takes. */
export const DOCUMENT_HELP = `DOCUMENT is a file with text, - for standard input, or else the text itself.`

/** The text that an argument means. */
export async function textOf(document: string, signal: AbortSignal): Promise<string> {
  if (document === '-') return inputText(signal)
  return existsSync(document) ? fileText(document) : document
}

/** All of standard input; the signal ends the wait for it. */
export async function inputText(signal: AbortSignal): Promise<string> {
  try {
    return await readAll(addAbortSignal(signal, stdin))
  } catch (cause) {
    if (signal.aborted) throw new AbortedError('the reading of standard input was aborted', { cause })
    throw new Error("standard input can't be read", { cause })
  }
}

/** All of a file. */
export async function fileText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (cause) {
    throw new Error(`${path} can't be read`, { cause })
  }
}

/** A text in one line. */
export function line(text: string): string {
  return text.trim().replaceAll(/\s+/g, ' ')
}
