/** The benches' BLEU against figures that sacrebleu 2.6.0 gave for the same lines. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { bleu } from '../esm/tune/bleu.js'
import { LARGE, SMALL } from './support/models.mjs'

const close = (t, found, expected) => t.true(Math.abs(found - expected) < 1e-9, `${found}, not ${expected}`)

test('a hundred translations of one model against the other’s', async (t) => {
  const texts = async (folder) =>
    (await readFile(join(folder, 'golden.jsonl'), 'utf8')).trimEnd().split('\n').map((line) => JSON.parse(line).text)
  const [large, small] = [await texts(LARGE), await texts(SMALL)]
  close(t, bleu(small, large), 29.09311777521264)
  close(t, bleu(large, small), 28.92590150140104)
})

test('numbers, hyphens and quotes', (t) => {
  const hypotheses = ['It cost 3,000.50 dollars - not 5-6, (really)!', 'a b', '"Yes," he said; that\'s it.']
  const references = ['It costs 3,000.50 dollars, not 5-6 (really).', 'a c', '"Yes", he said: that is it.']
  close(t, bleu(hypotheses, references), 22.37935259275017)
})

test('orders without a match', (t) => {
  close(t, bleu(['the cat sat on it now'], ['the dog lay on it then']), 17.965205598154213)
  t.is(bleu(['a'], ['b']), 0)
})
