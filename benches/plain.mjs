/**
 * Plain greedy decoding, Trefoil beside llama.cpp in one run.
 *
 *   npm run bench -- plain [--models a,b] [--rounds 3] [--tokens 128] [--threads 2] [--prompts 4]
 *
 * Both write the same prompt back to back, and who goes first alternates, so that a ratio is taken
 * between neighbours in time and a busy machine slows both. Times are taken where a user sees them: at
 * the first token and at the last. A rate of decoding leaves out the time to the first token; end to
 * end has all of it.
 */
import { parseArgs } from 'node:util'
import { existsSync } from 'node:fs'
import { MODELS, modelPath } from '../scripts/models.mjs'
import { openPeer } from './peer.mjs'

// Chosen so that none of the models ends its text before 128 tokens.
const PROMPTS = [
  'The keeper of the lighthouse found a letter in a bottle on the morning after the storm. She',
  '# A library for working with matrices in pure Python.\n\nclass Matrix:\n    def __init__(self, rows):\n        self.rows = rows\n',
  'The history of the bicycle, told decade by decade, starting with the 1810s:\n\n1810s:',
  'import json\nimport sys\n\n\ndef parse_arguments(arguments):\n    """Parses command line arguments into a dictionary."""\n',
  'Here is a detailed explanation of how a compiler turns source code into machine code, step by step.\n\nStep 1:',
  'In this chapter we look at how plants turn light into sugar. To begin with,'
]

export async function run(args) {
  const { values } = parseArgs({
    args,
    options: {
      models: { type: 'string', default: Object.keys(MODELS).join(',') },
      rounds: { type: 'string', default: '3' },
      tokens: { type: 'string', default: '128' },
      threads: { type: 'string', default: '2' },
      prompts: { type: 'string', default: '4' }
    }
  })
  const [rounds, tokens, threads, prompts] = ['rounds', 'tokens', 'threads', 'prompts'].map((key) => {
    const number = Number(values[key])
    if (!Number.isInteger(number) || number < 1) throw new Error(`--${key} is ${values[key]}; it takes a whole number from 1`)
    return number
  })
  const peer = await openPeer().catch((error) => console.log(`without a peer: ${error.message}`))
  const shape = { tokens, threads, rounds, prompts: Math.min(prompts, PROMPTS.length), peer: peer && `${peer.name} ${peer.version}` }
  console.log(`${shape.prompts} prompts × ${tokens} tokens, ${rounds} rounds, ${threads} threads, against ${shape.peer ?? 'nothing'}\n`)
  const models = {}
  for (const name of values.models.split(',')) models[name] = await measure(name, peer, shape)
  return { shape, models }
}

async function measure(name, peer, { tokens, threads, rounds, prompts }) {
  const path = await modelPath(name)
  const ours = await openTrefoil(path, threads)
  const theirs = await peer?.open(path, { threads, contextSize: 1024 })
  const pairs = []
  try {
    for (let round = -1; round < rounds; round += 1) {
      for (const prompt of PROMPTS.slice(0, prompts)) {
        const runs = [() => ours.greedy(prompt, tokens), () => theirs?.greedy(theirs.tokenize(prompt), tokens)]
        const order = round % 2 === 0 ? [0, 1] : [1, 0]
        const pair = []
        for (const i of order) pair[i] = await runs[i]()
        // The first round only warms caches and clocks.
        if (round < 0) continue
        pairs.push({ prompt: PROMPTS.indexOf(prompt), round, ours: rates(pair[0], tokens), theirs: rates(pair[1], tokens) })
      }
    }
  } finally {
    await ours.dispose()
    await theirs?.dispose()
  }
  const summary = summarise(pairs)
  print(name, summary)
  return { summary, pairs }
}

async function openTrefoil(path, threads) {
  const entry = new URL('../esm/index.js', import.meta.url)
  if (!existsSync(entry)) throw new Error('the package is not built; run: npm run build')
  const { load } = await import(entry.href)
  const model = await load(path, { device: 'cpu', threads, contextLength: 1024 })
  return {
    async greedy(prompt, maxTokens) {
      const start = performance.now()
      let firstMs = 0
      let first = 0
      let count = 0
      for await (const chunk of model.generate(prompt, { decoding: 'plain', maxTokens })) {
        count += chunk.tokens.length
        if (firstMs === 0 && count > 0) {
          firstMs = performance.now() - start
          first = count
        }
      }
      return { count, first, firstMs, ms: performance.now() - start }
    },
    dispose: () => model.dispose()
  }
}

function rates(run, wanted) {
  if (!run) return undefined
  const count = run.count ?? run.tokens.length
  const first = run.first ?? 1
  // A text that ends at once has no rate; a short one is no fair half of a pair.
  if (count < wanted / 2) throw new Error(`a text ended after ${count} of ${wanted} tokens`)
  return {
    tokens: count,
    firstMs: run.firstMs,
    decode: (1000 * (count - first)) / (run.ms - run.firstMs),
    endToEnd: (1000 * count) / run.ms
  }
}

function summarise(pairs) {
  const summary = {}
  for (const key of ['decode', 'endToEnd', 'firstMs']) {
    const values = { ours: median(pairs.map((p) => p.ours[key])) }
    if (pairs[0].theirs) {
      const ratios = pairs.map((p) => p.ours[key] / p.theirs[key])
      values.theirs = median(pairs.map((p) => p.theirs[key]))
      values.ratio = { median: median(ratios), least: Math.min(...ratios), most: Math.max(...ratios) }
    }
    summary[key] = values
  }
  return summary
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

function print(name, summary) {
  const labels = { decode: 'decode, tok/s', endToEnd: 'end to end, tok/s', firstMs: 'first token, ms' }
  console.log(name)
  for (const [key, { ours, theirs, ratio }] of Object.entries(summary)) {
    const peer = theirs === undefined ? '' : `  peer ${theirs.toFixed(1).padStart(7)}`
    const each = ratio && `  ratio ${ratio.median.toFixed(2)} (${ratio.least.toFixed(2)} to ${ratio.most.toFixed(2)})`
    console.log(`  ${labels[key].padEnd(18)} ${ours.toFixed(1).padStart(7)}${peer}${each ?? ''}`)
  }
}
