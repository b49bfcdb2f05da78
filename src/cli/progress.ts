/** A progress bar on a terminal; nothing anywhere else. */

import { stderr } from 'node:process'

import type { LoadProgress } from '../options.js'

/** Milliseconds before anything is shown, and between two pictures. */
const PATIENCE = 300
const FRAME = 100

const CELLS = 24

/** Shows how far a load is. `clear` takes the bar away again. */
export function progressBar(): { show(progress: LoadProgress): void; clear(): void } {
  const begin = performance.now()
  let drawn = 0
  return {
    show({ stage, file, done, total }): void {
      const now = performance.now()
      if (!stderr.isTTY || now - begin < PATIENCE || now - drawn < FRAME) return
      drawn = now
      stderr.write(`\r\u001b[K${stage}${file === undefined ? '' : ` ${file}`} ${picture(done, total)}`)
    },
    clear(): void {
      if (drawn > 0) stderr.write('\r\u001b[K')
      drawn = 0
    }
  }
}

function picture(done: number, total: number): string {
  const megabytes = (done / 1e6).toFixed(0)
  if (total <= 0) return `${megabytes} MB`
  const cells = Math.min(CELLS, Math.round((CELLS * done) / total))
  return `${'█'.repeat(cells)}${'░'.repeat(CELLS - cells)} ${megabytes} of ${(total / 1e6).toFixed(0)} MB`
}
