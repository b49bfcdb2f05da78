/** `trefoil tune`: finds the thresholds of BiLD for a pair of models. */

import { writeFile } from 'node:fs/promises'
import { stderr, stdout } from 'node:process'

import { plot } from '../tune/plot.js'
import { METRICS, sweep, type Case, type Point, type Setting } from '../tune/sweep.js'
import { command, numberOf, type Command, type ValuesOf } from './command.js'
import { fileText } from './input.js'
import { LOADING_HELP, LOADING_OPTIONS, withModel } from './writing.js'

const HELP = `Usage: trefoil tune MODEL --draft LITTLE CALIBRATION [options]

Writes every prompt of CALIBRATION by MODEL alone and by bild under many thresholds, prints quality against speed, and
keeps the fastest setting that is good enough in a file: load(MODEL, { draft: LITTLE, tuned: FILE }).

CALIBRATION has a prompt a line, or, as .jsonl, lines of { "source": …, "reference": … }. Quality is a share of what
MODEL alone reaches against the references; where there are none, its own texts are the references.

  --floor X                   the least quality, a share; 0.98 by default
  --metric NAME               ${Object.keys(METRICS).join(', ')}; bleu by default
  --fallback X,Y,…            thresholds to try; 0.1,0.2,0.3,0.5,0.7 by default
  --rollback X,Y,…            1,1.5,2,2.5,3,5 by default
  --cumulative no,yes         yes by default: --fallback is for a whole chain
  --candidates X,Y,…          1,0.1 by default: none, and those from a tenth
  --max-draft N,M,…           7 by default
  --max-tokens N              tokens of a text at most; 128 by default
  --output FILE               where the setting goes; tuned.json by default
  --plot FILE                 draws the curve as SVG
${LOADING_HELP}
  --json                      print all points as JSON
  --help                      print this

  trefoil tune models/de-en/large --draft models/de-en/aligned sentences.txt --floor 0.98
`

const OPTIONS = {
  ...LOADING_OPTIONS,
  floor: { type: 'string', default: '0.98' },
  metric: { type: 'string', default: 'bleu' },
  fallback: { type: 'string', default: '0.1,0.2,0.3,0.5,0.7' },
  rollback: { type: 'string', default: '1,1.5,2,2.5,3,5' },
  cumulative: { type: 'string', default: 'yes' },
  candidates: { type: 'string', default: '1,0.1' },
  'max-draft': { type: 'string', default: '7' },
  'max-tokens': { type: 'string', default: '128' },
  output: { type: 'string', default: 'tuned.json' },
  plot: { type: 'string' },
  json: { type: 'boolean' }
} as const

const ABOUT = { summary: 'finds the thresholds of bild for a pair of models', help: HELP, options: OPTIONS }

/** The command. */
export const tune: Command = command(ABOUT, async ([source, calibration, ...more], values, signal) => {
  const missing = [[source, 'a model'], [values.draft, '--draft'], [calibration, 'a calibration file']].find(([value]) => value === undefined)
  if (source === undefined || calibration === undefined || missing) {
    throw new Error(`${missing?.[1]} is missing; usage: trefoil tune MODEL --draft LITTLE CALIBRATION`)
  }
  if (more.length > 0) throw new Error(`'${more[0]}' is one argument too many`)
  const { metric, output } = values
  const [floor, maxTokens] = [numberOf('floor', values.floor) ?? 0, numberOf('max-tokens', values['max-tokens']) ?? 0]
  if (!(floor >= 0 && floor <= 1)) throw new Error(`--floor is '${values.floor}'; allowed: a number from 0 to 1`)
  if (!Object.hasOwn(METRICS, metric)) throw new Error(`--metric is '${metric}'; allowed: ${Object.keys(METRICS).join(', ')}`)
  const settings = settingsOf(values)
  const cases = casesOf(await fileText(calibration), calibration)

  const hear = (done: number): void => {
    if (stderr.isTTY) stderr.write(`\r\u001b[K${done} of ${cases.length} prompts`)
  }
  const { score, points } = await withModel(source, values, signal, (model) =>
    sweep(model, cases, settings, metric, { maxTokens, signal, hear }).finally(() => {
      if (stderr.isTTY) stderr.write('\r\u001b[K')
    })
  )
  const good = points.filter(({ quality }) => quality >= floor)
  const best = good.toSorted((a, b) => b.speed - a.speed)[0]
  if (values.plot !== undefined) await writeFile(values.plot, curve(points, metric))
  if (values.json) stdout.write(`${JSON.stringify({ metric, score, points, best })}\n`)
  else print(points, score, { metric, count: cases.length, best })
  if (!best) {
    const most = Math.max(...points.map(({ quality }) => quality))
    throw new Error(`no setting reaches --floor ${floor}; the best quality is ${most.toFixed(4)}`)
  }
  const { fallback, cumulative, candidates, rollback, maxDraft, quality, speed, largeCalls } = best
  const found = { metric, floor, prompts: cases.length, quality, speed, largeCalls }
  await writeFile(output, `${JSON.stringify({ bild: { fallback, cumulative, candidates, rollback, maxDraft }, found }, null, 2)}\n`)
  if (!values.json) stdout.write(`written to ${output}\n`)
})

/** The prompts of a calibration file. */
function casesOf(content: string, file: string): Case[] {
  const lines = content.split('\n').map((line, at) => ({ line: line.trim(), at })).filter(({ line }) => line !== '')
  if (lines.length === 0) throw new Error(`${file} has no prompt`)
  if (!file.endsWith('.jsonl')) return lines.map(({ line }) => ({ source: line }))
  const cases = lines.map(({ line, at }): Case => {
    let entry: unknown
    try {
      entry = JSON.parse(line)
    } catch {
      // Said below, with everything else that is no case.
    }
    const { source, reference } = (typeof entry === 'object' && entry !== null ? entry : {}) as Record<string, unknown>
    if (typeof source === 'string' && reference === undefined) return { source }
    if (typeof source === 'string' && typeof reference === 'string') return { source, reference }
    throw new Error(`${file}, line ${at + 1}, is no { "source": …, "reference": … }`)
  })
  if (new Set(cases.map(({ reference }) => reference === undefined)).size > 1) {
    throw new Error(`${file} has references for some prompts only; allowed: for all, or for none`)
  }
  return cases
}

function settingsOf(values: ValuesOf<typeof OPTIONS>): Setting[] {
  const list = (option: 'fallback' | 'rollback' | 'candidates' | 'max-draft'): number[] =>
    values[option].split(',').map((text) => numberOf(option, text) ?? 0)
  const whether = values.cumulative.split(',')
  const neither = whether.find((word) => word !== 'yes' && word !== 'no')
  if (neither !== undefined) throw new Error(`--cumulative has '${neither}'; allowed: yes, no`)
  const beyond = whether.flatMap((word) => list('candidates').map((candidates) => ({ cumulative: word === 'yes', candidates })))
  const settings: Setting[] = []
  for (const maxDraft of list('max-draft')) {
    for (const fallback of list('fallback')) {
      for (const rollback of list('rollback')) {
        for (const more of beyond) settings.push({ fallback, ...more, rollback, maxDraft })
      }
    }
  }
  // JSON, which keeps the setting, has no infinity.
  const endless = settings.find(({ fallback, rollback }) => !Number.isFinite(fallback) || !Number.isFinite(rollback))
  if (endless) throw new Error('--fallback or --rollback has Infinity; allowed: finite numbers')
  return settings
}

function print(points: readonly Point[], score: number, { metric, count, best }: { metric: string; count: number; best?: Point | undefined }): void {
  const head = ['fallback', 'cumulative', 'candidates', 'rollback', 'maxDraft', metric, 'quality', 'speed', 'large calls', 'rollbacks', 'replayed']
  const rows = points.map((point) => [
    ...[point.fallback, point.cumulative ? 'yes' : 'no', point.candidates, point.rollback, point.maxDraft].map(String),
    point.score.toFixed(2),
    `${(100 * point.quality).toFixed(1)}%`,
    `${point.speed.toFixed(2)}×${point === best ? ' *' : '  '}`,
    ...[point.largeCalls, point.rollbacks].map((value) => value.toFixed(3)),
    `${(100 * point.replayed).toFixed(0)}%`
  ])
  const widths = head.map((name, at) => Math.max(name.length, ...rows.map((row) => row[at]?.length ?? 0)))
  stdout.write(`${count} prompts; the large model alone has ${metric} ${score.toFixed(2)}; calls and rollbacks a token\n`)
  for (const row of [head, ...rows]) stdout.write(`  ${row.map((cell, at) => cell.padStart(widths[at] ?? 0)).join('  ')}\n`)
}

/** Quality against speed: a point for each rollback, a line for whatever else is the same. */
function curve(points: readonly Point[], metric: string): string {
  const lines = new Map<string, Point[]>()
  for (const point of points) {
    const name = `fallback ${point.fallback}${point.cumulative ? '+' : ''}, candidates ${point.candidates}, draft ${point.maxDraft}`
    lines.set(name, [...(lines.get(name) ?? []), point])
  }
  const low = Math.floor(10 * Math.min(0.9, ...points.map(({ quality }) => quality))) / 10
  const slow = Math.floor(10 * Math.min(0.9, ...points.map(({ speed }) => speed))) / 10
  return plot({
    title: `bild: quality (${metric}) against speed`,
    x: 'speed, the large model alone being 1',
    y: 'quality',
    origin: [slow, low],
    series: [...lines].map(([name, list], at) => ({ name, dashed: at % 2 === 1, points: list.map(({ speed, quality }) => [speed, quality] as const) }))
  })
}
