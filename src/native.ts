/** The native addons. This is the one file that knows where they are. */

import { cuda } from '../cuda.js'
import { machine, NativeLoading } from '../index.js'

export { findCuda, PROBE } from '../cuda.js'
export type {
  NativeDocument,
  NativeEvent,
  NativeFailure,
  NativeGeneration,
  NativeModel,
  NativeProbe,
  NativeResult
} from '../index.js'

/** What models are loaded with. */
export interface Binding {
  readonly NativeLoading: typeof NativeLoading
}

/** The addon for the CPU; it never links CUDA. */
export const CPU: Binding & { readonly machine: typeof machine } = { machine, NativeLoading }

/** The addon for CUDA in the package at `folder`, which has been probed: loading one that does not work can end the process. */
export function openCuda(folder: string): Binding {
  return cuda(folder) as Binding
}
