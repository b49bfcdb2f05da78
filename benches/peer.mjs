/**
 * The peer that plain decoding is measured and compared against: llama.cpp through node-llama-cpp.
 *
 * It is not a dependency of the project. `TREFOIL_PEERS` names a folder whose `node_modules` holds it.
 */
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

const VERSION = '3.22.1'
const INSTALL = `npm install --prefix peers node-llama-cpp@${VERSION}, then TREFOIL_PEERS=peers`

/**
 * Loads the peer's library.
 *
 * @returns `{ name, version, open(path, { threads, contextSize, … }) }`; what else is given goes to the peer's context
 * @throws when `TREFOIL_PEERS` is unset or holds no node-llama-cpp
 */
export async function openPeer() {
  const folder = process.env.TREFOIL_PEERS
  if (!folder) throw new Error(`TREFOIL_PEERS is not set; to measure against the peer: ${INSTALL}`)
  const root = resolve(folder, 'node_modules', 'node-llama-cpp')
  if (!existsSync(root)) throw new Error(`no node-llama-cpp in ${folder}; ${INSTALL}`)
  const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'))
  const { getLlama } = await import(pathToFileURL(join(root, 'dist', 'index.js')).href)
  const llama = await getLlama({ gpu: false, build: 'never', logLevel: 'error', maxThreads: 0 })
  return { name: 'node-llama-cpp', version, open: (path, options) => openModel(llama, path, options) }
}

async function openModel(llama, modelPath, { threads, contextSize, ...settings }) {
  const model = await llama.loadModel({ modelPath })
  const context = await model.createContext({ contextSize, threads, sequences: 1, ...settings })
  const sequence = context.getSequence()
  return {
    tokenize: (text) => [...model.tokenize(text)],
    detokenize: (tokens) => model.detokenize(tokens),

    /** Writes up to `count` tokens greedily; times are milliseconds since the call. */
    async greedy(prompt, count) {
      await sequence.clearHistory()
      const tokens = []
      const start = performance.now()
      let firstMs = 0
      for await (const token of sequence.evaluate(prompt, { temperature: 0 })) {
        if (tokens.length === 0) firstMs = performance.now() - start
        tokens.push(token)
        if (tokens.length >= count) break
      }
      return { tokens, firstMs, ms: performance.now() - start }
    },

    /**
     * The same text with the lead of every pick over the runner-up, in logits. A text that
     * differs where the lead is small differs by rounding; elsewhere it differs by a mistake.
     */
    async greedyWithLeads(prompt, count) {
      await sequence.clearHistory()
      const generateNext = { probabilities: true, options: { temperature: 1, topK: 2, topP: 1, minP: 0 } }
      const tokens = []
      const leads = []
      for (let feed = prompt; tokens.length < count; feed = tokens.slice(-1)) {
        const input = feed.map((token, i) => (i + 1 < feed.length ? token : [token, { generateNext }]))
        const outputs = await sequence.controlledEvaluate(input)
        const [[first, p], [, q]] = outputs.at(-1).next.probabilities
        if (model.isEogToken(first)) break
        tokens.push(first)
        leads.push(Number(Math.log(p / q).toPrecision(3)))
      }
      return { tokens, leads }
    },

    /** Milliseconds of one batch of `rows` tokens behind a prefix of `prefix`, with the scores of all. */
    async step(prefix, rows) {
      const tokens = someTokens(prefix + rows)
      if (sequence.nextTokenIndex < prefix) {
        await sequence.clearHistory()
        await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, prefix))
      }
      await sequence.eraseContextTokenRanges([{ start: prefix, end: sequence.nextTokenIndex }])
      const generateNext = { token: true, options: { temperature: 0 } }
      const input = tokens.slice(prefix).map((token) => [token, { generateNext }])
      const start = performance.now()
      await sequence.controlledEvaluate(input)
      return performance.now() - start
    },

    /** Milliseconds of caching `count` tokens. */
    async prefill(count) {
      await sequence.clearHistory()
      const start = performance.now()
      await sequence.evaluateWithoutGeneratingNewTokens(someTokens(count))
      return performance.now() - start
    },

    async dispose() {
      await context.dispose()
      await model.dispose()
    }
  }
}

/** Tokens that are not all the same. */
function someTokens(count) {
  return Array.from({ length: count }, (_, row) => 100 + ((row * 7) % 1000))
}
