/**
 * The default decoding beside plain, over kinds of prompts.
 *
 *   TREFOIL_DATA=FOLDER npm run bench -- auto [--model smollm2] [--kinds chat,code] [--prompts 120] [--tokens 96]
 *                       [--rounds 2] [--threads 2]
 *
 * Plain writes the same prompt before and after auto, and their mean counts, so that a ratio is taken between neighbours in
 * time; a prompt's ratio is the median of its rounds. Where auto looks little faster the prompt is measured anew, with more
 * rounds, and again where it then looks slower: without the earlier rounds, which were picked for how they look. How far
 * plain is from itself, the first time to the second, says how much the machine wavers. The texts must be equal.
 */
import { readFile } from 'node:fs/promises'
import { gunzipSync } from 'node:zlib'
import { parseArgs } from 'node:util'
import { join } from 'node:path'
import { modelPath } from '../scripts/models.mjs'

/** A prompt whose ratio is under a line gets its rounds anew, so many times as many. */
const DOUBTS = [
  { under: 1.05, times: 8 },
  { under: 0.98, times: 32 }
]

/** Kinds of prompts: how a line of a data set becomes one. */
const KINDS = {
  chat: { file: 'mt_bench/question.jsonl', prompt: ({ turns }) => turns[0] },
  code: { file: 'human_eval/HumanEval.jsonl', prompt: ({ prompt }) => `Complete this function:\n\`\`\`python\n${prompt}\`\`\`` },
  edit: {
    file: 'human_eval/HumanEval.jsonl',
    prompt: ({ prompt, canonical_solution }) =>
      `Add type hints to every parameter and keep everything else as it is. Give the whole code.\n\`\`\`python\n${prompt}${canonical_solution}\`\`\``
  },
  summary: { file: 'dialogsum/test.jsonl', prompt: ({ dialogue }) => `Summarise this dialogue.\n\n${dialogue}` },
  translation: { file: 'tatoeba/test.jsonl', prompt: ({ de }) => `Translate to English: ${de}` },
  copying: { file: 'scitldr/test.jsonl', prompt: ({ abstract }) => `Repeat this text word by word:\n\n${abstract}` }
}

export async function run(args) {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: 'string', default: 'smollm2' },
      kinds: { type: 'string', default: Object.keys(KINDS).join(',') },
      prompts: { type: 'string', default: '120' },
      tokens: { type: 'string', default: '96' },
      rounds: { type: 'string', default: '2' },
      threads: { type: 'string', default: '2' }
    }
  })
  const [prompts, maxTokens, rounds, threads] = ['prompts', 'tokens', 'rounds', 'threads'].map((key) => {
    const number = Number(values[key])
    if (!Number.isInteger(number) || number < 1) throw new Error(`--${key} is ${values[key]}; it takes a whole number from 1`)
    return number
  })
  const data = process.env.TREFOIL_DATA
  if (!data) throw new Error('TREFOIL_DATA is not set; it names the folder of the evaluation data')
  const kinds = values.kinds.split(',')
  const unknown = kinds.find((kind) => !Object.hasOwn(KINDS, kind))
  if (unknown !== undefined) throw new Error(`--kinds has ${unknown}; allowed: ${Object.keys(KINDS).join(', ')}`)

  const { load } = await import('../esm/index.js')
  const model = await load(await modelPath(values.model), { threads, contextLength: 2048 })
  const figures = []
  for (const kind of kinds) {
    const texts = await readPrompts(data, kind, Math.ceil(prompts / kinds.length))
    for (const content of texts) figures.push({ kind, ...(await pair(model, [{ role: 'user', content }], maxTokens, rounds)) })
    print(kind, figures.filter((figure) => figure.kind === kind))
  }
  print('all', figures)
  await model.dispose()
  const shape = { model: values.model, prompts: figures.length, maxTokens, rounds, threads }
  return { shape, summary: Object.fromEntries([...kinds, 'all'].map((kind) => [kind, summarise(kind, figures)])), figures }
}

async function readPrompts(folder, kind, count) {
  const { file, prompt } = KINDS[kind]
  const bytes = await readFile(join(folder, file))
  const lines = (file.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString().trim().split('\n')
  // Spread over the set, which may be sorted.
  const step = Math.max(1, Math.floor(lines.length / count))
  return lines.filter((_, at) => at % step === 0).slice(0, count).map((line) => prompt(JSON.parse(line)))
}

/** One prompt by both decodings. */
async function pair(model, prompt, maxTokens, rounds) {
  let measured = await turns(model, prompt, maxTokens, rounds)
  for (const { under, times } of DOUBTS) {
    if (measured.ratio < under) measured = await turns(model, prompt, maxTokens, rounds * times)
  }
  const { ratio, itself, plain, auto } = measured
  if (plain.tokens.join() !== auto.tokens.join()) throw new Error(`the texts differ: ${JSON.stringify(prompt)}`)
  return {
    tokens: plain.tokens.length,
    rounds: measured.rounds,
    ratio,
    itself,
    tokensPerStep: auto.stats.tokensPerStep,
    accepted: auto.stats.acceptedTokens,
    drafted: auto.stats.draftedTokens,
    ran: auto.stats.decoding
  }
}

/** The median ratios of some rounds, auto's and plain's to itself, and what each decoding wrote. */
async function turns(model, prompt, maxTokens, rounds) {
  const write = (decoding) => model.generate(prompt, { decoding, maxTokens }).result
  const [ratios, itself] = [[], []]
  let plain
  let auto
  for (let round = 0; round < rounds; round += 1) {
    const before = await write('plain')
    auto = await write('auto')
    plain = await write('plain')
    ratios.push((before.stats.decodeMs + plain.stats.decodeMs) / 2 / auto.stats.decodeMs)
    itself.push(before.stats.decodeMs / plain.stats.decodeMs)
  }
  return { rounds, ratio: median(ratios), itself: median(itself), plain, auto }
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

function summarise(kind, figures) {
  // A text of a few tokens takes less time than the clock and the machine waver.
  const kept = figures.filter((figure) => (kind === 'all' || figure.kind === kind) && figure.tokens >= 16)
  if (kept.length === 0) return { prompts: 0 }
  const ratios = kept.map(({ ratio }) => ratio).toSorted((a, b) => a - b)
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length
  return {
    prompts: kept.length,
    meanRatio: mean(ratios),
    medianRatio: median(ratios),
    worstRatio: ratios[0],
    itselfThere: kept.find(({ ratio }) => ratio === ratios[0]).itself,
    itselfWorst: Math.min(...kept.map(({ itself }) => itself)),
    tokensPerStep: mean(kept.map(({ tokensPerStep }) => tokensPerStep))
  }
}

function print(kind, figures) {
  const { prompts, meanRatio, medianRatio, worstRatio, itselfThere, tokensPerStep } = summarise(kind, figures)
  const numbers = [meanRatio, medianRatio, worstRatio, itselfThere, tokensPerStep].map((value) => value?.toFixed(2) ?? '–')
  console.log(`${kind.padEnd(12)} ${prompts} prompts  to plain: mean ${numbers[0]}, median ${numbers[1]}, worst ${numbers[2]} where plain is ${numbers[3]} to itself; ${numbers[4]} tokens a step`)
}
