/** The prompts that lookahead decoding is measured on, read from a folder of published data sets. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

const ask = (content) => [{ role: 'user', content }]

/** Set → its file, in its published format, and what a line of it asks for. */
export const SETS = {
  human_eval: ['human_eval/HumanEval.jsonl', ({ prompt }) => prompt],
  mt_bench: ['mt_bench/question.jsonl', ({ turns }) => ask(turns[0])],
  gsm8k: ['gsm8k/test.jsonl', ({ question }) => ask(question)],
  spec_bench: ['spec_bench/question.jsonl', ({ turns }) => ask(turns[0])],
  tatoeba: ['tatoeba/test.jsonl', ({ de }) => de]
}

/**
 * `count` prompts, evenly spread over a set; all, where it has fewer.
 *
 * @param {unknown[]} known prompts to leave out: sets share some
 */
export async function promptsOf(set, count, known = []) {
  const folder = process.env.TREFOIL_DATA
  if (!folder) throw new Error('TREFOIL_DATA is not set; it names the folder of human_eval/, mt_bench/, gsm8k/ and spec_bench/')
  if (!Object.hasOwn(SETS, set)) throw new Error(`--sets has '${set}'; it takes ${Object.keys(SETS).join(', ')}`)
  const [file, promptOf] = SETS[set]
  const lines = (await readFile(join(folder, file), 'utf8')).trimEnd().split('\n')
  const seen = new Set(known.map((prompt) => JSON.stringify(prompt)))
  const prompts = lines.map((line) => promptOf(JSON.parse(line))).filter((prompt) => !seen.has(JSON.stringify(prompt)))
  const step = Math.max(1, prompts.length / count)
  return Array.from({ length: Math.min(count, prompts.length) }, (_, at) => prompts[Math.floor(at * step)])
}

/** A whole number from 1 that an option was given. */
export function whole(name, value) {
  const number = Number(value)
  if (!Number.isInteger(number) || number < 1) throw new Error(`--${name} is ${value}; it takes a whole number from 1`)
  return number
}
