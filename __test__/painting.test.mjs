/** Colours of who wrote what. */
import test from 'ava'
import { painter } from '../esm/cli/painting.js'
import { load } from '../esm/index.js'
import { LARGE, SMALL } from './support/models.mjs'

// What a terminal would show without its colours.
// oxlint-disable-next-line no-control-regex
const bare = (text) => text.replaceAll(/\u001b\[\d+m/g, '')

/** A model whose tokens are bytes of UTF-8. */
const bytes = { detokenize: async (ids) => Buffer.from(ids).toString('utf8') }
const token = (id, from) => ({ id, from })

test('each token has the colour of who wrote it', async (t) => {
  const paint = painter(bytes)
  t.is(await paint({ text: 'ab', tokens: [token(97, 'draft'), token(98, 'correction')] }), '\u001b[32ma\u001b[0m\u001b[33mb\u001b[0m')
  t.is(await paint({ text: 'c', tokens: [token(99, 'model')] }), '\u001b[36mc\u001b[0m')
})

test('a character of several tokens has the colour of the last, and held back text keeps its own', async (t) => {
  const paint = painter(bytes)
  t.is(await paint({ text: '', tokens: [token(0xc3, 'draft')] }), '')
  t.is(await paint({ text: '', tokens: [token(0xa9, 'model'), token(97, 'draft')] }), '')
  t.is(await paint({ text: 'éa', tokens: [] }), '\u001b[36mé\u001b[0m\u001b[32ma\u001b[0m')
})

test('a painted text is the text, up to its stop string', async (t) => {
  const model = await load(LARGE, { draft: SMALL })
  try {
    for (const de of ['Wo ist der Bahnhof?', 'Tom hat gestern ein neues Auto gekauft.', 'Sie liest jeden Abend ein Buch.']) {
      const decoding = { type: 'bild', fallback: 0.2, rollback: 1 }
      const generation = model.generate(de, { maxTokens: 64, decoding, stop: ['.', 'station?'] })
      const paint = painter(model)
      let shown = ''
      for await (const chunk of generation) shown += await paint(chunk)
      t.is(bare(shown), (await generation.result).text)
      t.true(shown.includes('\u001b[32m'))
    }
  } finally {
    await model.dispose()
  }
})
