/**
 * Corpus BLEU as the field reports it: four orders, one reference, the tokens of mteval-v13a, case kept, and every
 * order without a match counted as half of the last such one.
 *
 * Source: Post 2018, "A call for clarity in reporting BLEU scores"; its figures are sacrebleu's defaults.
 */

const ORDERS = 4

const ENTITIES: readonly (readonly [RegExp, string])[] = [
  [/<skipped>/g, ''],
  [/-\n/g, ''],
  [/\n/g, ' '],
  [/&quot;/g, '"'],
  [/&amp;/g, '&'],
  [/&lt;/g, '<'],
  [/&gt;/g, '>']
]

const BREAKS: readonly (readonly [RegExp, string])[] = [
  // ASCII punctuation and symbols but for apostrophe, comma, hyphen and full stop.
  [/[!-&(-+/:-@[-`{-~]/g, ' $& '],
  // Full stop and comma, unless a digit is on that side.
  [/([^0-9])([.,])/g, '$1 $2 '],
  [/([.,])([^0-9])/g, ' $1 $2'],
  [/([0-9])-/g, '$1 - ']
]

/** A line's tokens. */
function tokens(line: string): string[] {
  const plain = ENTITIES.reduce((text, [from, to]) => text.replace(from, to), line.trimEnd())
  const broken = BREAKS.reduce((text, [from, to]) => text.replace(from, to), ` ${plain} `)
  return broken.split(/\s+/u).filter(Boolean)
}

/** BLEU of `hypotheses` against one reference each, 0 to 100. */
export function bleu(hypotheses: readonly string[], references: readonly string[]): number {
  const [matches, totals] = [zeros(), zeros()]
  let written = 0
  let wanted = 0
  for (const [at, hypothesis] of hypotheses.entries()) {
    const [ours, theirs] = [tokens(hypothesis), tokens(references[at] ?? '')]
    written += ours.length
    wanted += theirs.length
    for (let order = 1; order <= ORDERS; order += 1) {
      const known = counts(theirs, order)
      for (const [gram, count] of counts(ours, order)) {
        matches[order - 1] = (matches[order - 1] ?? 0) + Math.min(count, known.get(gram) ?? 0)
        totals[order - 1] = (totals[order - 1] ?? 0) + count
      }
    }
  }
  if (matches.every((count) => count === 0) || totals.includes(0)) return 0
  let half = 1
  const logs = matches.map((count, at) => {
    if (count === 0) half /= 2
    return Math.log((count || half) / (totals[at] ?? 1))
  })
  const brevity = written < wanted ? Math.exp(1 - wanted / written) : 1
  return 100 * brevity * Math.exp(logs.reduce((sum, log) => sum + log, 0) / ORDERS)
}

function zeros(): number[] {
  return Array.from({ length: ORDERS }, () => 0)
}

/** How often each run of `order` tokens occurs. */
function counts(line: readonly string[], order: number): Map<string, number> {
  const grams = new Map<string, number>()
  for (let at = 0; at + order <= line.length; at += 1) {
    const gram = line.slice(at, at + order).join(' ')
    grams.set(gram, (grams.get(gram) ?? 0) + 1)
  }
  return grams
}
