/** Where the models are that tests run. */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MODELS, cacheFolder } from '../../scripts/models.mjs'

const at = (path) => fileURLToPath(new URL(`../../${path}`, import.meta.url))

export const LARGE = at('models/de-en/large')
export const SMALL = at('models/de-en/small')
export const ALIGNED = at('models/de-en/aligned')
export const DIALOGUES = at('models/dst')
export const TINY = at('fixtures/smollm2')
export const ROOT = at('')
export const SMOLLM2 = join(cacheFolder(), MODELS.smollm2.file)
/** The Qwen2.5-Coder pair; tests on it run where it is. */
export const QWEN = ['qwen2.5-coder-0.5b', 'qwen2.5-coder-1.5b'].map((name) => ({ name, path: join(cacheFolder(), MODELS[name].file) }))
