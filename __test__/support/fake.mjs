/** A native generation that plays back events, so that the iteration protocol can be tested step by step. */

export const STATS = {
  promptTokens: 1,
  tokens: 0,
  steps: 0,
  tokensPerStep: 0,
  draftForwards: 0,
  draftedTokens: 0,
  acceptedTokens: 0,
  fallbacks: 0,
  rollbacks: 0,
  poolHits: 0,
  poolBytes: 0,
  encoderForwards: 0,
  prefillMs: 0,
  decodeMs: 0,
  hostMs: 0,
  tokensPerSecond: 0,
  decoding: 'plain'
}

/**
 * Writes `steps` chunks 'a', 'b', … and then ends as a real one does: `done`, or `failed` where a failure is given; a
 * cancel ends it at the next event with the text so far. It is paused while `bound` events wait unread.
 */
export function fakeSource({ steps = 3, failure, bound = 2, stepMs = 1 } = {}) {
  const queue = []
  let written = 0
  let text = ''
  let over = false
  let wake = () => {}
  const log = { cancels: 0, unbounds: 0, most: 0, reads: 0, waiting: 0 }

  const done = (finishReason) => ({
    kind: 'done',
    results: [{ text, tokens: [...text].map((letter) => letter.charCodeAt(0)), finishReason, stats: STATS }]
  })
  const push = (event) => {
    queue.push(event)
    log.most = Math.max(log.most, queue.length)
    wake()
  }
  const timer = setInterval(() => {
    if (log.cancels > 0) finish(done('abort'))
    else if (log.unbounds === 0 && queue.length >= bound) return
    else if (written < steps) {
      const letter = String.fromCharCode(97 + (written % 26))
      written += 1
      text += letter
      push({ kind: 'chunk', prompt: 0, text: letter, ids: [letter.charCodeAt(0)], logprobs: [] })
    } else finish(failure ? { kind: 'failed', failure } : done('stop'))
  }, stepMs)

  function finish(event) {
    clearInterval(timer)
    over = true
    push(event)
  }

  return {
    log,
    written: () => written,
    async next() {
      log.reads += 1
      log.waiting += 1
      while (queue.length === 0 && !over) await new Promise((resolve) => (wake = resolve))
      log.waiting -= 1
      return queue.shift() ?? null
    },
    cancel: () => {
      log.cancels += 1
    },
    unbound: () => {
      log.unbounds += 1
    }
  }
}
