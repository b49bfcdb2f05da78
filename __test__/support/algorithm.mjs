/** What `scripts/golden_bild.py` records, and the same of a result. */

/** A decoding as `generate` takes it: JSON has no infinity. */
export function readDecoding(recorded) {
  return { ...recorded, ...(recorded.rollback === null && { rollback: Infinity }) }
}

/** The tokens, and the calls, fallbacks and rollbacks that they took, in the recorded order. */
export function accountOf({ tokens, stats }) {
  return [tokens, stats.steps, stats.draftForwards, stats.fallbacks, stats.rollbacks]
}
