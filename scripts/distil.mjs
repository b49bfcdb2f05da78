/**
 * A model's own texts, for a little model to learn from: what `scripts/align.py` trains on.
 *
 *   node scripts/distil.mjs MODEL SOURCES.jsonl TEXTS.jsonl [--key de] [--count 110000] [--tokens 64]
 *
 * SOURCES has an object a line (`.gz` or not), whose KEY is a source; TEXTS gets `{ source, tokens }` lines, greedy and
 * without the end token. Sources are spread over the file, each is written once, and texts that do not end are left out.
 */
import { createWriteStream } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { once } from 'node:events'
import { parseArgs } from 'node:util'
import { gunzipSync } from 'node:zlib'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    key: { type: 'string', default: 'de' },
    count: { type: 'string', default: '110000' },
    tokens: { type: 'string', default: '64' }
  }
})
const [path, sources, texts] = positionals
if (!texts) throw new Error('usage: node scripts/distil.mjs MODEL SOURCES.jsonl TEXTS.jsonl')

const { load } = await import('../esm/index.js')
const bytes = await readFile(sources)
const lines = (sources.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString().trimEnd().split('\n')
const step = Math.max(1, lines.length / Number(values.count))
const chosen = new Set()
for (let at = 0; at < lines.length; at += step) chosen.add(JSON.parse(lines[Math.floor(at)])[values.key])

const model = await load(path)
const out = createWriteStream(texts)
for (const source of chosen) {
  const { tokens, finishReason } = await model.generate(source, { decoding: 'plain', maxTokens: Number(values.tokens) }).result
  if (finishReason === 'stop') out.write(`${JSON.stringify({ source, tokens })}\n`)
}
out.end()
await once(out, 'finish')
await model.dispose()
