/** Where models from the hub are kept. */

import { homedir } from 'node:os'
import { join } from 'node:path'
import { env, platform } from 'node:process'

/** `TREFOIL_MODELS`, or `trefoil` in the platform's cache folder. */
export function cacheFolder(): string {
  const { TREFOIL_MODELS, XDG_CACHE_HOME, LOCALAPPDATA } = env
  if (TREFOIL_MODELS) return TREFOIL_MODELS
  if (platform === 'win32' && LOCALAPPDATA) return join(LOCALAPPDATA, 'trefoil')
  return join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'trefoil')
}
