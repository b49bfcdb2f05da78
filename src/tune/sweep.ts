/**
 * BiLD under many thresholds, beside the large model alone: how good, and how fast.
 *
 * Replay: a text that was written under one `rollback` is, with the same steps, the text under every lower one down to
 * the most that it was forgiven (`stats.forgiven`), so there it is not written again. Replaying the large model's
 * probabilities along one recorded chain of the little model would spare more, and was rejected: behind the first
 * replaced token the chain is another one, and the record says nothing of it.
 */

import { AbortedError } from '../errors.js'
import type { Model } from '../model.js'
import type { Result } from '../result.js'
import { bleu } from './bleu.js'
import { rougeL } from './rouge.js'

/** What is to be written, and what it should be. */
export interface Case {
  source: string
  /** A good text; the large model's own where there is none. */
  reference?: string
}

/** Thresholds of BiLD. */
export interface Setting {
  fallback: number
  cumulative: boolean
  candidates: number
  rollback: number
  maxDraft: number
}

/** How BiLD does under one setting. */
export interface Point extends Setting {
  /** The metric, 0 to 100. */
  score: number
  /** The score as a share of the large model's own. */
  quality: number
  /** Wall-clock time of the large model alone, as a multiple of this. */
  speed: number
  /** Calls of the large model a token, the end token included. */
  largeCalls: number
  /** Replaced tokens a token. */
  rollbacks: number
  /** Texts that were replayed, as a share. */
  replayed: number
}

/** Measures of a text against a good one, over all texts, 0 to 100. */
export const METRICS: Readonly<Record<string, (hypotheses: readonly string[], references: readonly string[]) => number>> = {
  bleu,
  rouge: rougeL,
  exact: (hypotheses, references) =>
    (100 * hypotheses.filter((text, at) => text.trim() === references[at]?.trim()).length) / hypotheses.length
}

interface Run {
  result: Result
  ms: number
  replayed: boolean
}

/**
 * Writes every case alone by the large model and under every setting. Who begins moves on from case to case, so that
 * times are compared between neighbours.
 *
 * @param hear told how many cases are done
 */
export async function sweep(
  model: Model,
  cases: readonly Case[],
  settings: readonly Setting[],
  metric: string,
  options: { maxTokens: number; signal?: AbortSignal; hear?: (done: number) => void }
): Promise<{ score: number; points: Point[] }> {
  const { hear, ...writing } = options
  const large: Run[] = []
  const runs: Run[][] = settings.map(() => [])
  const lanes = lanesOf(settings)
  for (const [number, { source }] of cases.entries()) {
    const write = async (setting?: Setting): Promise<Run> => {
      const start = performance.now()
      const decoding = setting ? { type: 'bild' as const, ...setting } : 'plain'
      const result = await model.generate(source, { ...writing, decoding }).result
      if (writing.signal?.aborted) throw new AbortedError('the sweep was aborted', { cause: writing.signal.reason })
      return { result, ms: performance.now() - start, replayed: false }
    }
    for (let turn = 0; turn <= lanes.length; turn += 1) {
      const lane = lanes[(number + turn) % (lanes.length + 1)]
      if (!lane) large.push(await write())
      let last: Run | undefined
      for (const place of lane ?? []) {
        const setting = settings[place]
        if (!setting) continue
        last = last && last.result.stats.forgiven <= setting.rollback ? { ...last, replayed: true } : await write(setting)
        runs[place]?.push(last)
      }
    }
    hear?.(number + 1)
  }
  return summary(cases, settings, { large, runs }, METRICS[metric] ?? bleu)
}

/** Places of settings that differ in their rollback only, the highest first. */
function lanesOf(settings: readonly Setting[]): number[][] {
  const lanes = new Map<string, number[]>()
  for (const [place, { fallback, cumulative, candidates, maxDraft }] of settings.entries()) {
    const lane = [fallback, cumulative, candidates, maxDraft].join(' ')
    lanes.set(lane, [...(lanes.get(lane) ?? []), place])
  }
  const rollback = (place: number): number => settings[place]?.rollback ?? 0
  return [...lanes.values()].map((lane) => lane.toSorted((a, b) => rollback(b) - rollback(a)))
}

function summary(
  cases: readonly Case[],
  settings: readonly Setting[],
  { large, runs }: { large: readonly Run[]; runs: readonly (readonly Run[])[] },
  measure: (hypotheses: readonly string[], references: readonly string[]) => number
): { score: number; points: Point[] } {
  const texts = (list: readonly Run[]): string[] => list.map(({ result }) => result.text)
  const total = (list: readonly Run[], value: (run: Run) => number): number => list.reduce((sum, run) => sum + value(run), 0)
  const references = cases.map(({ reference }, at) => reference ?? large[at]?.result.text ?? '')
  const own = measure(texts(large), references)
  const points = settings.map((setting, place): Point => {
    const list = runs[place] ?? []
    // An end token takes a call as well, so that a text counts one token more than it shows.
    const tokens = total(list, ({ result }) => result.tokens.length + 1)
    const score = measure(texts(list), references)
    return {
      ...setting,
      score,
      quality: own === 0 ? 0 : score / own,
      speed: total(large, ({ ms }) => ms) / total(list, ({ ms }) => ms),
      largeCalls: total(list, ({ result }) => result.stats.steps) / tokens,
      rollbacks: total(list, ({ result }) => result.stats.rollbacks) / tokens,
      replayed: total(list, ({ replayed }) => Number(replayed)) / list.length
    }
  })
  return { score: own, points }
}
