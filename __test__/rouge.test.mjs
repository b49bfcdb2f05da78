/** ROUGE-L against figures that rouge-score 0.1.2 gave for the same texts, without stemming. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { rougeL } from '../esm/tune/rouge.js'
import { LARGE, SMALL } from './support/models.mjs'

const close = (t, found, expected) => t.true(Math.abs(found - expected) < 1e-9, `${found}, not ${expected}`)

test('a hundred translations of one model against the other’s', async (t) => {
  const texts = async (folder) =>
    (await readFile(join(folder, 'golden.jsonl'), 'utf8')).trimEnd().split('\n').map((line) => JSON.parse(line).text)
  close(t, rougeL(await texts(SMALL), await texts(LARGE)), 60.6074374560473)
})

const TEXTS = [
  ['It cost 3,000.50 dollars - not 5-6, (really)!', 'It costs 3,000.50 dollars, not 5-6 (really).', 90],
  ['a b', 'a c', 50],
  ['"Yes," he said; that\'s it.', '"Yes", he said: that is it.', 83.33333333333334],
  ['', 'nothing', 0],
  ['the same words in the same order', 'order same the in words same the', 42.857142857142854]
]

for (const [hypothesis, reference, expected] of TEXTS) {
  test(`${JSON.stringify(hypothesis)} against ${JSON.stringify(reference)}`, (t) => {
    close(t, rougeL([hypothesis], [reference]), expected)
  })
}

test('texts count alike', (t) => {
  close(t, rougeL(TEXTS.map(([text]) => text), TEXTS.map(([, text]) => text)), TEXTS.reduce((sum, [, , score]) => sum + score, 0) / TEXTS.length)
  t.is(rougeL([], []), 0)
})
