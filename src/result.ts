/** What a generation gives: a chunk a step, and a result at the end. */

import type { NativeEvent, NativeResult } from './native.js'

/** What one step added. */
export interface Chunk {
  /** Text that became final. It can be empty while a character or a possible stop string is incomplete. */
  text: string
  /** Every token that the step kept. */
  tokens: ChunkToken[]
}

/** A token of a chunk. */
export interface ChunkToken {
  id: number
  /** Who had it first: `draft` for a token that the step confirmed, `model` for one that it wrote itself. */
  from: 'draft' | 'model'
  /** Natural logarithm of the model's probability for it; given where `logprobs` was asked for. */
  logprob?: number
}

/** A finished text. */
export interface Result {
  /** What was written, without the prompt. */
  text: string
  /** Its tokens, without an end-of-text token. */
  tokens: number[]
  /** `stop`: the model or a stop string ended it; `length`: a limit did; `abort`: a signal or its reader did. */
  finishReason: 'stop' | 'length' | 'abort'
  /** What it took. */
  stats: Stats
}

/** What a text took. Times are in milliseconds. */
export interface Stats {
  promptTokens: number
  tokens: number
  /** Forward passes of the model after prefill. */
  steps: number
  tokensPerStep: number
  draftForwards: number
  draftedTokens: number
  acceptedTokens: number
  fallbacks: number
  rollbacks: number
  /** Steps in which lookahead's n-gram pool had a guess at what comes next. */
  poolHits: number
  /** Bytes of that pool; texts that are written together share it. */
  poolBytes: number
  encoderForwards: number
  /** Encoding and the prompt; a prompt of a few tokens is part of the first step instead. */
  prefillMs: number
  decodeMs: number
  /** The part of `decodeMs` that no model took: proposing, judging, and keeping what was judged. */
  hostMs: number
  tokensPerSecond: number
  /** The decoding that really ran. */
  decoding: string
}

/** The chunk that a native event carries. */
export function chunkOf({ text = '', ids = [], logprobs, accepted = 0 }: NativeEvent): Chunk {
  const tokens = ids.map((id, at): ChunkToken => {
    const token: ChunkToken = { id, from: at < accepted ? 'draft' : 'model' }
    const logprob = logprobs?.[at]
    return logprob === undefined ? token : { ...token, logprob }
  })
  return { text, tokens }
}

/** The result that a native one is. */
export function resultOf({ text, tokens, finishReason, stats }: NativeResult): Result {
  return { text, tokens, finishReason: finishReason as Result['finishReason'], stats }
}
