/**
 * How well the embedded dialogue model tracks MultiWOZ dialogues: every test turn is read once and asked for 30 slots.
 *
 *   TREFOIL_DATA=folder npm run eval -- multiwoz [--turns N] [--threads 2] [--answers FILE]
 *
 * Turns are taken evenly over the set where `--turns` wants fewer than all. Joint goal accuracy is the share of turns
 * with all slots right, slot accuracy the share of slots; a slot without a value is right where the answer is `none`.
 * `--answers` keeps tokens and answers, a line a turn, for scripts/agree_dialogues.py to compare.
 */
import { writeFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { documentOf, MODEL, promptOf, slots, turns } from './dialogues.mjs'

const MAX_TOKENS = 16

export async function run(args) {
  const { values } = parseArgs({
    args,
    options: { turns: { type: 'string' }, threads: { type: 'string', default: '2' }, answers: { type: 'string' } }
  })
  const all = await turns()
  const wanted = values.turns === undefined ? all.length : Number(values.turns)
  if (!Number.isInteger(wanted) || wanted < 1) throw new Error(`--turns is ${values.turns}; it takes a whole number from 1`)
  const count = Math.min(wanted, all.length)
  const some = Array.from({ length: count }, (_, at) => all[Math.floor((at * all.length) / count)])
  const names = await slots()
  const { load } = await import(new URL('../esm/index.js', import.meta.url).href)
  const model = await load(MODEL, { threads: Number(values.threads) })
  const sums = { joint: 0, right: 0, found: 0, valued: 0 }
  const kept = []
  const start = performance.now()
  try {
    const prompts = names.map(promptOf)
    for (const turn of some) {
      const text = await documentOf(model, turn)
      const document = await model.read(text)
      const results = await document.ask(prompts, { maxTokens: MAX_TOKENS }).result
      score(sums, names, turn.state, results.map(({ text }) => text.trim()))
      await document.dispose()
      if (values.answers) kept.push({ document: text, prompts, answers: results.map(({ tokens }) => tokens) })
    }
  } finally {
    await model.dispose()
  }
  const seconds = (performance.now() - start) / 1000
  if (values.answers) await writeFile(values.answers, kept.map((turn) => `${JSON.stringify(turn)}\n`).join(''))
  const figures = {
    jointGoalAccuracy: sums.joint / count,
    slotAccuracy: sums.right / (count * names.length),
    // Most slots have no value, so that these say more.
    recallOfValues: sums.found / Math.max(1, sums.valued),
    values: sums.valued,
    seconds
  }
  const percent = (share) => `${(100 * share).toFixed(2)}%`
  console.log(`${count} of ${all.length} test turns × ${names.length} slots, ${seconds.toFixed(1)} s`)
  console.log(`joint goal accuracy ${percent(figures.jointGoalAccuracy)}, slot accuracy ${percent(figures.slotAccuracy)}`)
  console.log(`of ${sums.valued} slots that have a value ${percent(figures.recallOfValues)} are right`)
  return { shape: { turns: count, slots: names.length, maxTokens: MAX_TOKENS }, ...figures }
}

function score(sums, names, state, answers) {
  let all = true
  for (const [at, slot] of names.entries()) {
    const value = state[slot] ?? 'none'
    // `a|b`: either is right.
    const right = value.split('|').includes(answers[at] === '' ? 'none' : answers[at])
    all &&= right
    sums.right += Number(right)
    if (value !== 'none') {
      sums.valued += 1
      sums.found += Number(right)
    }
  }
  sums.joint += Number(all)
}
