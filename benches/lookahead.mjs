/**
 * Lookahead decoding over a grid of (W, N, G), beside plain decoding of the same prompts in one run.
 *
 *   TREFOIL_DATA=FOLDER npm run bench -- lookahead [--model smollm2] [--sets human_eval,mt_bench] [--prompts 4]
 *                       [--tokens 96] [--threads 2] [--grid 5:4:5,10:5:10] [--reference]
 *
 * TREFOIL_DATA holds human_eval, mt_bench, gsm8k and spec_bench in their published formats. S is tokens a step, R the
 * wall-clock ratio to plain decoding of the same prompt, taken back to back; both are means over prompts. The
 * predicted S is the paper's cost law with its fitted constants (α = 0.425, f = 3.106). Every text is compared with
 * plain decoding's. A plot of S and R against rows a step goes to benches/results/lookahead-MODEL.svg.
 */
import { writeFile, mkdir } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { modelPath } from '../scripts/models.mjs'
import { plot } from './plot.mjs'
import { promptsOf, whole } from './prompts.mjs'

const SETS = ['human_eval', 'mt_bench', 'gsm8k', 'spec_bench']

export async function run(args) {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: 'string', default: 'smollm2' },
      sets: { type: 'string', default: SETS.join(',') },
      prompts: { type: 'string', default: '4' },
      tokens: { type: 'string', default: '96' },
      threads: { type: 'string', default: '2' },
      grid: { type: 'string', default: '3:3:3,5:4:5,10:5:10,15:5:15' },
      reference: { type: 'boolean', default: false }
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
  const figures = {}
  try {
    for (const set of values.sets.split(',')) {
      figures[set] = await measure(model, await promptsOf(set, prompts), tokens, decodings)
      print(set, figures[set])
    }
  } finally {
    await model.dispose()
  }
  await draw(values.model, figures)
  return { shape: { model: values.model, prompts, tokens, threads }, figures }
}

async function measure(model, prompts, maxTokens, decodings) {
  const rows = decodings.map((decoding) => ({ decoding, S: [], R: [], rows: [], same: 0, texts: 0 }))
  const write = async (prompt, decoding) => await model.generate(prompt, { maxTokens, decoding }).result
  if (prompts.length > 0) await write(prompts[0], 'plain')
  for (const prompt of prompts) {
    for (const row of rows) {
      // Plain runs beside each decoding, so that a busy moment slows both halves of a ratio.
      const plain = await write(prompt, 'plain')
      const { tokens, stats } = await write(prompt, row.decoding)
      if (plain.tokens.length < 8) continue
      row.S.push(stats.tokensPerStep)
      row.R.push(plain.stats.decodeMs / stats.decodeMs)
      row.rows.push(1 + stats.draftedTokens / stats.steps)
      row.texts += 1
      row.same += Number(String(tokens) === String(plain.tokens))
    }
  }
  return rows.map(({ decoding, S, R, rows: used, same, texts }) => {
    const { window, ngram, guesses, reference = false } = decoding
    return {
      window,
      ngram,
      guesses,
      reference,
      rows: mean(used),
      S: mean(S),
      predicted: costLaw(decoding),
      R: mean(R),
      worstR: Math.min(...R),
      same,
      texts
    }
  })
}

/** Expected tokens a step by the paper's law, b = the lesser of W and G. */
function costLaw({ ngram, window, guesses }) {
  const [alpha, f, gamma, b] = [0.425, 3.106, ngram - 1, window > 0 ? Math.min(window, guesses) : guesses]
  let expected = gamma + 1
  for (let i = 1; i <= gamma; i += 1) expected -= (1 - alpha ** i) ** b
  return (f - 1 + expected) / f
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length)
}

function print(set, rows) {
  console.log(`${set}\n  W  N  G         rows/step      S  predicted      R  worst R  same text`)
  for (const { window, ngram, guesses, reference, rows: used, S, predicted, R, worstR, same, texts } of rows) {
    const name = [window, ngram, guesses].map((n) => String(n).padStart(3)).join('')
    const cells = [used.toFixed(1).padStart(9), S.toFixed(2).padStart(7), predicted.toFixed(2).padStart(10)]
    cells.push(R.toFixed(2).padStart(7), worstR.toFixed(2).padStart(8), `${same} of ${texts}`.padStart(10))
    console.log(`${name} ${reference ? 'reference' : '         '}${cells.join(' ')}`)
  }
}

async function draw(model, figures) {
  const series = Object.entries(figures).flatMap(([set, rows]) => {
    const improved = rows.filter(({ reference }) => !reference)
    const line = (key) => ({ name: `${key} ${set}`, dashed: key === 'R', points: improved.map((row) => [row.rows, row[key]]) })
    return [line('S'), line('R')]
  })
  await mkdir(new URL('./results/', import.meta.url), { recursive: true })
  const svg = plot({ title: `Lookahead, ${model}`, x: 'rows a step', y: 'S (solid), R (dashed)', series })
  await writeFile(new URL(`./results/lookahead-${model}.svg`, import.meta.url), svg)
}
