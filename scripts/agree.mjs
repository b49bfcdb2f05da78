/**
 * Does Trefoil write what llama.cpp writes?
 *
 *   node scripts/agree.mjs [MODEL…]            compares with the recorded texts, no peer needed
 *   node scripts/agree.mjs --record            records fixtures/agree.json with the peer (TREFOIL_PEERS)
 *   node scripts/agree.mjs --self [MODEL…]     compares the recorded texts with the peer's own under other settings
 *   node scripts/agree.mjs --data FILE [MODEL…]  compares on the prompts of a JSONL file (HumanEval's), with the peer
 *
 * Greedy text after the same prompt tokens, 32 tokens, 20 prompts of its own or all of FILE's. The lead of each pick
 * over the runner-up tells a difference by rounding from a mistake. The cache is kept in half precision, as the peer's is.
 *
 * Who is right where the two differ? Beside each recorded text is the model's own, computed with the same weights in f32
 * and nothing rounded (scripts/agree.py); how often either engine writes it is printed too.
 */
import { readFile, writeFile } from 'node:fs/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { modelPath } from './models.mjs'

const RECORD = fileURLToPath(new URL('../fixtures/agree.json', import.meta.url))
const MODELS = ['smollm2', 'qwen2.5-coder-0.5b', 'qwen2.5-coder-1.5b']
const TOKENS = 32

const PROMPTS = [
  'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
  'fn gcd(a: u64, b: u64) -> u64 {\n',
  'SELECT name, COUNT(*) AS orders\nFROM customers\n',
  'function debounce(fn, delay) {\n  let timer\n',
  '#include <stdio.h>\n\nint main(void) {\n',
  'class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n',
  '# Quicksort in Python, in place\ndef partition(values, low, high):\n',
  'export async function fetchJson(url) {\n  const response = await fetch(url)\n',
  'package main\n\nimport "fmt"\n\nfunc reverse(s string) string {\n',
  '/* Center a box both ways with flexbox. */\n.box {\n',
  'The capital of France is',
  'Clover leaves come in threes because',
  'Three reasons to write tests before code:\n1.',
  'Once upon a time, in a village by the sea, a baker',
  'Der schnellste Weg, eine Sprache zu lernen, ist',
  'To make a good cup of tea, first',
  'Q: What is the difference between a stack and a queue?\nA:',
  '| language | year |\n| --- | --- |\n| C | 1972 |\n| Python |',
  '{"name": "trefoil", "version": "0.1.0", "dependencies": {',
  'x = 1\ny = 2\nprint(x + y)  # prints 3\nx = 10\ny = 20\nprint(x * y)  # prints'
]

/** What the peer writes after each prompt. */
async function peerCases(name, prompts) {
  const { openPeer } = await import('../benches/peer.mjs')
  const peer = await openPeer()
  const model = await peer.open(await modelPath(name), { threads: 2, contextSize: 1024 })
  const cases = []
  for (const prompt of prompts) {
    const ids = model.tokenize(prompt)
    const { tokens, leads } = await model.greedyWithLeads(ids, TOKENS)
    cases.push({ prompt, ids, tokens, leads, text: model.detokenize(tokens) })
  }
  await model.dispose()
  return { by: `${peer.name} ${peer.version}`, cases }
}

async function record() {
  const lines = []
  let by = ''
  for (const name of MODELS) {
    const found = await peerCases(name, PROMPTS)
    by = `${found.by}, CPU, greedy`
    const cases = found.cases.map((c) => `    ${JSON.stringify(c)}`).join(',\n')
    lines.push(`  ${JSON.stringify(name)}: [\n${cases}\n  ]`)
  }
  await writeFile(RECORD, `{\n  "by": ${JSON.stringify(by)},\n${lines.join(',\n')}\n}\n`)
}

/** Settings that change how the peer rounds, and nothing else. */
const SETTINGS = {
  'without flash attention': { flashAttention: false },
  'and a cache in single precision': {
    flashAttention: false,
    experimentalKvCacheKeyType: 'F32',
    experimentalKvCacheValueType: 'F32'
  }
}

/** How often the peer agrees with itself where only its rounding differs: no engine can be asked for more. */
async function compareSelf(name, cases) {
  const { openPeer } = await import('../benches/peer.mjs')
  const peer = await openPeer()
  for (const [title, settings] of Object.entries(SETTINGS)) {
    const model = await peer.open(await modelPath(name), { threads: 2, contextSize: 512, ...settings })
    let agreed = 0
    for (const { ids, tokens } of cases) {
      const written = (await model.greedyWithLeads(ids, TOKENS)).tokens
      if (written.join() === tokens.join()) agreed += 1
    }
    await model.dispose()
    console.log(`${name}, the peer ${title}: agrees with its recorded self on ${agreed} of ${cases.length}`)
  }
}

/** Compares one model's texts and prints where each first differs. */
async function compare(name, cases) {
  const { load } = await import('../esm/index.js')
  const model = await load(await modelPath(name), { device: 'cpu', threads: 2, contextLength: 1024, cacheType: 'f16' })
  const count = { agreed: 0, exact: 0, peerExact: 0 }
  for (const { prompt, ids, tokens, leads, exact } of cases) {
    const title = JSON.stringify(prompt.slice(0, 40))
    const mine = await model.tokenize(prompt)
    if (mine.join() !== ids.join()) {
      console.log(`  ${title}: the prompt's tokens differ: ${mine.join(' ')} against ${ids.join(' ')}`)
      continue
    }
    const written = (await model.generate(prompt, { decoding: 'plain', maxTokens: TOKENS }).result).tokens
    if (exact) {
      count.exact += Number(written.join() === exact.join())
      count.peerExact += Number(tokens.join() === exact.join())
    }
    const at = firstDifference(written, tokens)
    if (at < 0) {
      count.agreed += 1
      continue
    }
    const right = exact && firstDifference(exact.slice(0, at), tokens.slice(0, at)) < 0 ? `, unrounded ${exact[at] ?? 'end'}` : ''
    console.log(`  ${title}: differs at ${at}: ${written[at] ?? 'end'} against ${tokens[at] ?? 'end'}, lead ${leads[at] ?? '–'}${right}`)
  }
  await model.dispose()
  console.log(`${name}: ${count.agreed} of ${cases.length} agree`)
  if (cases.every(({ exact }) => exact)) {
    console.log(`${name}: as without rounding ${count.exact} of ${cases.length}, the peer ${count.peerExact}`)
  }
}

/** Where two texts first differ, -1 where they don't. */
function firstDifference(a, b) {
  return Array.from({ length: Math.max(a.length, b.length) }).findIndex((_, i) => a[i] !== b[i])
}

async function main(args) {
  if (args.includes('--record')) return record()
  if (args[0] === '--data') {
    const lines = (await readFile(args[1], 'utf8')).trim().split('\n')
    const prompts = lines.map((line) => JSON.parse(line).prompt)
    const names = args.slice(2)
    for (const name of names.length > 0 ? names : MODELS) await compare(name, (await peerCases(name, prompts)).cases)
    return
  }
  const recorded = JSON.parse(await readFile(RECORD, 'utf8'))
  const self = args[0] === '--self'
  const names = self ? args.slice(1) : args
  for (const name of names.length > 0 ? names : MODELS) {
    if (!recorded[name]) throw new Error(`no recording of ${JSON.stringify(name)}; there are ${MODELS.join(', ')}`)
    await (self ? compareSelf : compare)(name, recorded[name])
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  main(process.argv.slice(2)).catch((error) => {
    console.error(`agree: ${error.message}`)
    process.exitCode = 1
  })
}
