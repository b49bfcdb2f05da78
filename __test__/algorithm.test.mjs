/** BiLD on the embedded pairs against Algorithm 1 over the probabilities that transformers gives, in plain Python. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { load } from '../esm/index.js'
import { accountOf, readDecoding } from './support/algorithm.mjs'
import { ALIGNED, LARGE, ROOT, SMALL } from './support/models.mjs'

const recorded = JSON.parse(await readFile(join(ROOT, 'models/de-en/bild.json'), 'utf8'))

for (const [name, folder] of Object.entries({ small: SMALL, aligned: ALIGNED })) {
  test(`tokens, calls, fallbacks and rollbacks are the algorithm’s, ${name} writing for large`, async (t) => {
    const pair = await load(LARGE, { draft: folder })
    let rollbacks = 0
    try {
      for (const [at, decoding] of recorded.decodings.entries()) {
        const write = ({ de }) => pair.generate(de, { decoding: readDecoding(decoding), maxTokens: recorded.maxTokens }).result
        const results = await Promise.all(recorded[name].map(write))
        for (const [index, { de, texts }] of recorded[name].entries()) {
          t.deepEqual(accountOf(results[index]), texts[at], `${JSON.stringify(decoding)}: ${de}`)
          rollbacks += texts[at][4]
        }
      }
    } finally {
      await pair.dispose()
    }
    t.true(rollbacks > 100, `${rollbacks} rollbacks`)
  })
}
