/** What a generation gives: a chunk a step, and a result at the end. */

import type { NativeEvent, NativeResult } from './native.js'

/**
 * What one step added. With `events: 'eager'`, also what a draft model has written ahead of it:
 * `shown = shown.slice(0, shown.length - (chunk.revoke ?? 0)) + chunk.text` is the text so far, tentative end included,
 * and without the tentative chunks the stream is the same as a committed one.
 */
export interface Chunk {
  /** Text that became final. It can be empty while a character or a possible stop string is incomplete. */
  text: string
  /** Every token that the step kept. */
  tokens: ChunkToken[]
  /** The model has yet to judge this: text and token are the draft model's and will be taken back, to come again if they are kept. */
  tentative?: true
  /**
   * UTF-16 code units of shown text to take back before `text` is added: all that is tentative. Given where it is not 0,
   * and never without `events: 'eager'`.
   */
  revoke?: number
}

/** A token of a chunk. */
export interface ChunkToken {
  id: number
  /**
   * Who had it first: `draft` for a token that the step confirmed, `model` for one that the model wrote itself, and
   * `correction` where it did so in place of another token of the draft model.
   */
  from: 'draft' | 'model' | 'correction'
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
  /** Tokens that the model wrote behind a candidate: one that the draft model had named and not written. */
  candidates: number
  /**
   * The most that `bild` forgave, in nats: the highest −ln p under the model of a kept token that it would not have
   * written itself. 0 says that the text is the model's own, `Infinity` that a part was not judged. The same text is
   * written, by the same steps, under every `rollback` from here to the one that was given.
   */
  forgiven: number
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
export function chunkOf(event: NativeEvent): Chunk {
  const { text = '', ids = [], logprobs, accepted = 0, replaced, tentative, revoke } = event
  const tokens = ids.map((id, at): ChunkToken => {
    const own = replaced && at === accepted ? 'correction' : 'model'
    const token: ChunkToken = { id, from: at < accepted ? 'draft' : own }
    const logprob = logprobs?.[at]
    if (logprob !== undefined) token.logprob = logprob
    return token
  })
  return { text, tokens, ...(tentative && { tentative }), ...(revoke && { revoke }) }
}

/** The result that a native one is. */
export function resultOf({ text, tokens, finishReason, stats }: NativeResult): Result {
  return { text, tokens, finishReason: finishReason as Result['finishReason'], stats }
}
