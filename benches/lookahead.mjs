/**
 * Lookahead decoding over a grid of (W, N, G), beside plain decoding of the same prompts in one run.
 *
 *   TREFOIL_DATA=FOLDER npm run bench -- lookahead [--model smollm2] [--sets human_eval,mt_bench] [--prompts 4]
 *                       [--tokens 96] [--threads 2] [--grid 5:4:5,10:5:10] [--reference] [--steps]
 *
 * TREFOIL_DATA holds human_eval, mt_bench, gsm8k and spec_bench in their published formats. S is tokens a step, R the
 * wall-clock ratio to plain decoding of the same prompt, taken back to back; both are means over prompts. The
 * predicted S is the paper's cost law with its fitted constants (α = 0.425, f = 3.106); it knows no pool that outlives
 * its window, and so says nothing of W = 0. Every text is compared with plain decoding's. `--steps` leaves R out, and
 * plain decoding's times with it: S needs no quiet machine. A call measures some sets and settings; the figures of
 * others stay, and a plot of all S and R against rows a step goes to benches/results/lookahead-MODEL.svg.
 */
import { writeFile, mkdir } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { modelPath } from '../scripts/models.mjs'
import { plot } from '../esm/tune/plot.js'
import { promptsOf, whole } from './prompts.mjs'

const SETS = ['human_eval', 'mt_bench', 'gsm8k', 'spec_bench']

export async function run(args, { commit, date, loadBefore }) {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: 'string', default: 'smollm2' },
      sets: { type: 'string', default: SETS.join(',') },
      prompts: { type: 'string', default: '4' },
      tokens: { type: 'string', default: '96' },
      threads: { type: 'string', default: '2' },
      grid: { type: 'string', default: '3:3:3,5:4:5,10:5:10,15:5:15' },
      reference: { type: 'boolean', default: false },
      steps: { type: 'boolean', default: false }
    }
  })
  const [prompts, tokens, threads] = ['prompts', 'tokens', 'threads'].map((name) => whole(name, values[name]))
  const { load } = await import(new URL('../esm/index.js', import.meta.url).href)
  const model = await load(await modelPath(values.model), { threads, contextLength: 2048 })
  const decodings = values.grid.split(',').flatMap((cell) => {
    const [window, ngram, guesses] = cell.split(':').map(Number)
    const improved = { type: 'lookahead', window, ngram, guesses }
    return values.reference ? [improved, { ...improved, reference: true }] : [improved]
  })
  const circumstances = { tokens, threads, commit, date, loadBefore }
  const figures = {}
  try {
    for (const set of values.sets.split(',')) {
      const rows = await measure(model, await promptsOf(set, prompts), tokens, decodings, values.steps)
      print(set, rows)
      for (const row of rows) Object.assign(row, circumstances)
      figures[set] = rows
    }
  } finally {
    await model.dispose()
  }
  return { shape: { model: values.model }, figures }
}

/** New figures beside the earlier ones of other sets and settings, and a plot of them all. */
export async function keep(earlier, { shape, figures }) {
  const name = ({ window, ngram, guesses, reference }) => [window, ngram, guesses, reference].join()
  const kept = { ...earlier.figures }
  for (const [set, rows] of Object.entries(figures)) {
    const fresh = new Set(rows.map(name))
    kept[set] = [...(kept[set] ?? []).filter((row) => !fresh.has(name(row))), ...rows]
  }
  await draw(shape.model, kept)
  return { shape, figures: kept }
}

async function measure(model, prompts, maxTokens, decodings, onlySteps) {
  const rows = decodings.map((decoding) => ({ decoding, S: [], R: [], host: [], rows: [], same: 0, texts: 0 }))
  const write = async (prompt, decoding) => await model.generate(prompt, { maxTokens, decoding }).result
  if (prompts.length > 0) await write(prompts[0], 'plain')
  for (const prompt of prompts) {
    let plain
    for (const row of rows) {
      // Plain runs beside each decoding, so that a busy moment slows both halves of a ratio.
      if (!plain || !onlySteps) plain = await write(prompt, 'plain')
      const { tokens, stats } = await write(prompt, row.decoding)
      if (plain.tokens.length < 8) continue
      row.S.push(stats.tokensPerStep)
      if (!onlySteps) row.R.push(plain.stats.decodeMs / stats.decodeMs)
      row.host.push(stats.hostMs / stats.decodeMs)
      row.rows.push(1 + stats.draftedTokens / stats.steps)
      row.texts += 1
      row.same += Number(String(tokens) === String(plain.tokens))
    }
  }
  return rows.map(({ decoding, S, R, host, rows: used, same, texts }) => {
    const { window, ngram, guesses, reference = false } = decoding
    return {
      window,
      ngram,
      guesses,
      reference,
      rows: mean(used),
      S: mean(S),
      predicted: costLaw(decoding),
      R: onlySteps ? undefined : mean(R),
      worstR: onlySteps ? undefined : Math.min(...R),
      host: mean(host),
      same,
      texts
    }
  })
}

/** Expected tokens a step by the paper's law, b = the lesser of W and G; nothing without a window. */
function costLaw({ ngram, window, guesses }) {
  if (window === 0) return undefined
  const [alpha, f, gamma, b] = [0.425, 3.106, ngram - 1, Math.min(window, guesses)]
  let expected = gamma + 1
  for (let i = 1; i <= gamma; i += 1) expected -= (1 - alpha ** i) ** b
  return (f - 1 + expected) / f
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length)
}

function print(set, rows) {
  console.log(`${set}\n  W  N  G         rows/step      S  predicted      R  worst R  host %  same text`)
  const cell = (value, width, digits = 2) => (value === undefined ? '–' : value.toFixed(digits)).padStart(width)
  for (const { window, ngram, guesses, reference, rows: used, S, predicted, R, worstR, host, same, texts } of rows) {
    const name = [window, ngram, guesses].map((n) => String(n).padStart(3)).join('')
    const cells = [cell(used, 9, 1), cell(S, 7), cell(predicted, 10), cell(R, 7), cell(worstR, 8), cell(100 * host, 7)]
    console.log(`${name} ${reference ? 'reference' : '         '}${cells.join(' ')} ${`${same} of ${texts}`.padStart(10)}`)
  }
}

async function draw(model, figures) {
  const series = Object.entries(figures).flatMap(([set, rows]) => {
    const improved = rows.filter(({ reference }) => !reference)
    const line = (key) => {
      const known = improved.filter((row) => row[key] !== undefined)
      return { name: `${key} ${set}`, dashed: key === 'R', points: known.map((row) => [row.rows, row[key]]) }
    }
    return [line('S'), line('R')]
  })
  await mkdir(new URL('./results/', import.meta.url), { recursive: true })
  const svg = plot({ title: `Lookahead, ${model}`, x: 'rows a step', y: 'S (solid), R (dashed)', series })
  await writeFile(new URL(`./results/lookahead-${model}.svg`, import.meta.url), svg)
}
