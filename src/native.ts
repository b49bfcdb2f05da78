/** The native addon. This is the one file that knows where it is. */

export { NativeLoading } from '../index.js'
export type { NativeDocument, NativeEvent, NativeFailure, NativeGeneration, NativeModel, NativeResult } from '../index.js'
