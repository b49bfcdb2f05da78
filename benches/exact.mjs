/**
 * Counts the texts that lookahead decoding writes exactly as plain decoding does.
 *
 *   TREFOIL_DATA=FOLDER npm run bench -- exact [--models smollm2,de-en,fixtures] [--prompts 200] [--tokens 128]
 *                       [--threads 1] [--grid 5:4:5,0:3:8,10:5:10]
 *
 * TREFOIL_DATA holds human_eval, mt_bench, gsm8k, spec_bench and tatoeba in their published formats. Every prompt is
 * written greedily and sampled (temperature 0.8, top-p 0.9, repetition penalty 1.1, a seed of its own), a third of them
 * up to a stop string and the others to the end or the limit, by plain decoding and by every (W, N, G) of the grid. Two
 * texts are equal where text, tokens, log-probabilities and the reason to end are. The bench fails where one is not; it keeps
 * the figures of models that a call leaves out.
 */
import { isDeepStrictEqual, parseArgs } from 'node:util'
import { fileURLToPath } from 'node:url'
import { modelPath } from '../scripts/models.mjs'
import { promptsOf, whole } from './prompts.mjs'

const at = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url))
const CAUSAL = ['human_eval', 'mt_bench', 'gsm8k', 'spec_bench']

/** Name → where the model is, how it is loaded, and the sets that it continues. */
const MODELS = {
  smollm2: { path: () => modelPath('smollm2'), sets: CAUSAL },
  'de-en': { path: () => at('models/de-en/large'), sets: ['tatoeba'] },
  'fixture-smollm2': { path: () => at('fixtures/smollm2'), options: { dtype: 'f32' }, sets: ['tatoeba'] },
  'fixture-t5': { path: () => at('fixtures/t5'), options: { dtype: 'f32' }, sets: ['tatoeba'] }
}
const GROUPS = { fixtures: ['fixture-smollm2', 'fixture-t5'] }

const SAMPLED = { temperature: 0.8, topP: 0.9, repetitionPenalty: 1.1 }
const STOPS = ['\n\n', ' the', ' you', '. ']
const CONTEXT = 4096

export async function run(args, machine) {
  const { values } = parseArgs({
    args,
    options: {
      models: { type: 'string', default: 'smollm2,de-en,fixtures' },
      prompts: { type: 'string', default: '200' },
      tokens: { type: 'string', default: '128' },
      threads: { type: 'string', default: '1' },
      grid: { type: 'string', default: '5:4:5,0:3:8,10:5:10' }
    }
  })
  const [prompts, tokens, threads] = ['prompts', 'tokens', 'threads'].map((name) => whole(name, values[name]))
  const decodings = values.grid.split(',').map((cell) => {
    const [window, ngram, guesses] = cell.split(':').map(Number)
    return { type: 'lookahead', window, ngram, guesses }
  })
  const { load } = await import(new URL('../esm/index.js', import.meta.url).href)
  const models = {}
  for (const name of values.models.split(',').flatMap((name) => GROUPS[name] ?? name)) {
    if (!Object.hasOwn(MODELS, name)) throw new Error(`--models has '${name}'; it takes ${Object.keys(MODELS).join(', ')}`)
    const { path, options, sets } = MODELS[name]
    const texts = await spread(sets, prompts)
    const model = await load(await path(), { ...options, threads, contextLength: CONTEXT })
    try {
      models[name] = { machine, shape: { prompts: texts.length, tokens, threads }, counts: await compare(name, model, texts, tokens, decodings) }
    } finally {
      await model.dispose()
    }
    print(name, models[name])
  }
  return { models }
}

/** Earlier figures stay where there are no new ones. */
export function keep(earlier, { models }) {
  return { models: { ...earlier.models, ...models } }
}

/** About `count` prompts over all sets, none of them twice; the smallest sets give all that they have. */
async function spread(sets, count) {
  const found = []
  for (const [index, set] of sets.entries()) {
    found.push(...(await promptsOf(set, Math.ceil((count - found.length) / (sets.length - index)), found)))
  }
  return found
}

/** Writes every prompt by plain decoding and by `decodings`; gives for each the texts compared and those that are equal. */
async function compare(name, model, prompts, maxTokens, decodings) {
  const counts = decodings.flatMap((decoding) =>
    ['greedy', 'sampled'].map((mode) => ({ decoding, mode, compared: 0, equal: 0, tokens: 0, steps: 0, ends: {}, differing: [] }))
  )
  for (const [index, prompt] of prompts.entries()) {
    const stop = index % 3 === 0 ? { stop: STOPS } : {}
    for (const [mode, sampling] of Object.entries({ greedy: {}, sampled: { ...SAMPLED, seed: index } })) {
      const write = async (decoding) => {
        const generation = model.generate(prompt, { maxTokens, logprobs: true, ...stop, ...sampling, decoding })
        const logprobs = []
        for await (const { tokens } of generation) logprobs.push(...tokens.map(({ logprob }) => logprob))
        const { text, tokens, finishReason, stats } = await generation.result
        return { written: { text, tokens, logprobs, finishReason }, stats }
      }
      const plain = await write('plain')
      for (const decoding of decodings) {
        const { written, stats } = await write(decoding)
        const count = counts.find((count) => count.decoding === decoding && count.mode === mode)
        const equal = isDeepStrictEqual(written, plain.written)
        count.compared += 1
        count.equal += Number(equal)
        count.tokens += stats.tokens
        count.steps += stats.steps
        count.ends[written.finishReason] = (count.ends[written.finishReason] ?? 0) + 1
        if (!equal) count.differing.push(index)
      }
    }
    if ((index + 1) % 10 === 0) {
      const sum = (key) => counts.reduce((sum, count) => sum + count[key], 0)
      console.log(`${name}: ${index + 1} of ${prompts.length} prompts, ${sum('equal')} of ${sum('compared')} texts equal`)
    }
  }
  return counts
}

function print(name, { shape, counts }) {
  console.log(`${name}, ${shape.prompts} prompts × ${shape.tokens} tokens\n   W  N  G            equal of compared  tokens/step  ended by`)
  for (const { decoding: { window, ngram, guesses }, mode, compared, equal, tokens, steps, ends } of counts) {
    const cells = [window, ngram, guesses].map((n) => String(n).padStart(3)).join('')
    const by = Object.entries(ends).map(([reason, times]) => `${reason} ${times}`).join(', ')
    console.log(` ${cells} ${mode.padEnd(8)} ${`${equal} of ${compared}`.padStart(20)} ${(tokens / steps).toFixed(2).padStart(12)}  ${by}`)
  }
  const differing = counts.filter(({ differing }) => differing.length > 0)
  if (differing.length > 0) throw new Error(`${name}: ${differing.length} settings wrote another text than plain decoding`)
}
