/**
 * ROUGE-L as the field reports it: the F-measure of the longest common subsequence of two texts' words, without
 * stemming, as the mean over texts.
 *
 * Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries"; words as rouge-score cuts them.
 */

/** A text's words: runs of ASCII letters and digits, in lower case. */
function words(text: string): string[] {
  return text.toLowerCase().split(/[^a-z0-9]+/).filter(Boolean)
}

/** ROUGE-L of `hypotheses` against one reference each, 0 to 100. */
export function rougeL(hypotheses: readonly string[], references: readonly string[]): number {
  const sum = hypotheses.reduce((total, hypothesis, at) => total + one(words(hypothesis), words(references[at] ?? '')), 0)
  return hypotheses.length === 0 ? 0 : (100 * sum) / hypotheses.length
}

function one(ours: readonly string[], theirs: readonly string[]): number {
  const common = longestCommon(ours, theirs)
  if (common === 0) return 0
  const [precision, recall] = [common / ours.length, common / theirs.length]
  return (2 * precision * recall) / (precision + recall)
}

/** The length of the longest common subsequence. */
function longestCommon(ours: readonly string[], theirs: readonly string[]): number {
  // The row of the table for the words of `ours` so far: how much each beginning of `theirs` has in common with them.
  let row = Array.from({ length: theirs.length + 1 }, () => 0)
  for (const word of ours) {
    const next = [0]
    for (const [at, other] of theirs.entries()) {
      next.push(word === other ? (row[at] ?? 0) + 1 : Math.max(row[at + 1] ?? 0, next[at] ?? 0))
    }
    row = next
  }
  return row.at(-1) ?? 0
}
