/**
 * Trefoil makes language models write faster without writing differently.
 *
 * @packageDocumentation
 */

export {
  AbortedError,
  ContextOverflowError,
  DeviceError,
  DisposedError,
  DownloadError,
  ExtractionError,
  InternalError,
  InvalidOptionError,
  ModelLoadError,
  OutOfMemoryError,
  OverloadedError,
  TrefoilError
} from './errors.js'
export type { DeviceReason } from './errors.js'
export type { AnswerChunk, Answers } from './answers.js'
export type { AskOptions, EncodedDocument } from './document.js'
export type { Extracted, ExtractOptions } from './extract.js'
export type { Generation } from './generation.js'
export { load } from './load.js'
export type { Model, ModelInfo } from './model.js'
export type {
  Bild,
  Card,
  ChatMessage,
  Decoding,
  GenerateOptions,
  Jacobi,
  Lookahead,
  LoadOptions,
  LoadProgress,
  Speculative
} from './options.js'
export type { Chunk, ChunkToken, Result, Stats } from './result.js'
export type { Infer, JsonSchema, StandardSchema } from './schema.js'
