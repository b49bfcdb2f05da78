/** What commands that write have in common: their options, and a model for as long as they take. */

import { load } from '../load.js'
import type { Model } from '../model.js'
import type { GenerateOptions, LoadOptions } from '../options.js'
import { given, numberOf } from './command.js'
import { progressBar } from './progress.js'

/** Help on `WRITING_OPTIONS`. */
export const WRITING_HELP = `  --max-tokens N              stop after so many tokens
  --stop TEXT                 stop before this text; can be given several times
  --temperature X             0, the default, always takes the likeliest token
  --top-k N, --top-p X, --min-p X
                              draw from the likeliest tokens only
  --repetition-penalty X      above 1, repeat less
  --seed N                    the same seed writes the same text
  --decoding NAME             how to decode: auto, the default, plain, lookahead, bild, speculative`

/** Help on `LOADING_OPTIONS`. */
export const LOADING_HELP = `  --device NAME               where to run: auto, the default, cpu, cuda, cuda:N
                              several cards share the work: cuda:0,cuda:1
  --draft LITTLE              the little model of bild and speculative
  --draft-device NAME         where the little model runs: cpu, cuda, cuda:N; with the model by default
  --tuned FILE                what trefoil tune has found for the two models
  --threads N                 threads of a step
  --context N                 tokens that prompt and text may have together
  --offline                   never ask the hub`

/** How texts are written. */
export const WRITING_OPTIONS = {
  'max-tokens': { type: 'string' },
  stop: { type: 'string', multiple: true },
  temperature: { type: 'string' },
  'top-k': { type: 'string' },
  'top-p': { type: 'string' },
  'min-p': { type: 'string' },
  'repetition-penalty': { type: 'string' },
  seed: { type: 'string' },
  decoding: { type: 'string' }
} as const

/** How a model is loaded. */
export const LOADING_OPTIONS = {
  device: { type: 'string' },
  draft: { type: 'string' },
  'draft-device': { type: 'string' },
  tuned: { type: 'string' },
  threads: { type: 'string' },
  context: { type: 'string' },
  offline: { type: 'boolean' }
} as const

/** The values of options as they were given. */
export type Values = { [K in Exclude<keyof typeof WRITING_OPTIONS, 'stop'>]?: string | undefined } & {
  [K in Exclude<keyof typeof LOADING_OPTIONS, 'offline'>]?: string | undefined
} & { stop?: string[] | undefined; offline?: boolean | undefined }

/** Loads a model under a progress bar, uses it, and lets it go. */
export async function withModel<Used>(
  source: string,
  values: Values,
  signal: AbortSignal,
  use: (model: Model) => Promise<Used>
): Promise<Used> {
  const bar = progressBar()
  const model = await load(source, { ...loadOptions(values), signal, onProgress: bar.show }).finally(bar.clear)
  try {
    return await use(model)
  } finally {
    await model.dispose()
  }
}

/** Options of `load`. */
function loadOptions(values: Values): LoadOptions {
  const { device, draft, 'draft-device': beside } = values
  if (beside !== undefined && draft === undefined) throw new Error(`--draft-device is '${beside}' without --draft; give both`)
  return given({
    // The engine knows which devices there are.
    device: (device?.includes(',') ? device.split(',') : device) as LoadOptions['device'],
    draft: (beside === undefined ? draft : { model: draft, device: beside }) as LoadOptions['draft'],
    tuned: values.tuned,
    threads: numberOf('threads', values.threads),
    contextLength: numberOf('context', values.context),
    offline: values.offline
  })
}

/** Options of a generation. */
export function generateOptions(values: Values): GenerateOptions {
  return given({
    maxTokens: numberOf('max-tokens', values['max-tokens']),
    stop: values.stop,
    temperature: numberOf('temperature', values.temperature),
    topK: numberOf('top-k', values['top-k']),
    topP: numberOf('top-p', values['top-p']),
    minP: numberOf('min-p', values['min-p']),
    repetitionPenalty: numberOf('repetition-penalty', values['repetition-penalty']),
    seed: numberOf('seed', values.seed),
    decoding: values.decoding as GenerateOptions['decoding']
  })
}
