/** A line plot as SVG: no dependencies, the same file from the same figures. */

const [WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM] = [720, 420, 60, 40, 190, 50] as const
const COLOURS = ['#1b6ca8', '#c0392b', '#1e8449', '#b9770e', '#6c3483', '#117a65', '#7b7d7d', '#a04000']

/** What is drawn: each series one line through its points, in the order of their x. */
export interface Plot {
  title: string
  /** Names of the axes, which reach at least to 1. */
  x: string
  y: string
  /** Where the axes begin; 0 by default. */
  origin?: readonly [number, number]
  /** A solid and a dashed line can share a colour in turn. */
  series: readonly { name: string; dashed?: boolean; points: readonly (readonly [number, number])[] }[]
}

/** Draws the lines. */
export function plot({ title, x, y, origin: [left, low] = [0, 0], series }: Plot): string {
  const all = series.flatMap(({ points }) => points)
  const [most, highest] = [Math.max(1, ...all.map(([at]) => at)), Math.max(1, ...all.map(([, value]) => value))]
  const atX = (value: number): number => LEFT + ((value - left) / (most - left)) * (WIDTH - LEFT - RIGHT)
  const atY = (value: number): number => HEIGHT - BOTTOM - ((value - low) / (highest - low)) * (HEIGHT - TOP - BOTTOM)
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>`,
    text(LEFT, 22, title, 'font-weight="bold" font-size="15"'),
    text((WIDTH - RIGHT + LEFT) / 2, HEIGHT - 12, x, 'text-anchor="middle"'),
    text(14, TOP - 8, y)
  ]
  for (const value of ticks(low, highest)) {
    parts.push(`<path d="M${LEFT} ${atY(value)}H${WIDTH - RIGHT}" stroke="#ddd"/>`, text(LEFT - 6, atY(value) + 4, value, 'text-anchor="end"'))
  }
  for (const value of ticks(left, most)) parts.push(text(atX(value), HEIGHT - BOTTOM + 18, value, 'text-anchor="middle"'))
  parts.push(`<path d="M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}" fill="none" stroke="#333"/>`)
  for (const [index, { name, dashed, points }] of series.entries()) {
    const colour = COLOURS[(index >> 1) % COLOURS.length]
    const sorted = points.toSorted(([a], [b]) => a - b)
    const line = sorted.map(([at, value]) => `${atX(at).toFixed(1)},${atY(value).toFixed(1)}`).join(' ')
    const dash = dashed ? ' stroke-dasharray="5 4"' : ''
    parts.push(`<polyline points="${line}" fill="none" stroke="${colour}" stroke-width="2"${dash}/>`)
    for (const [at, value] of sorted) parts.push(`<circle cx="${atX(at).toFixed(1)}" cy="${atY(value).toFixed(1)}" r="2.5" fill="${colour}"/>`)
    parts.push(text(WIDTH - RIGHT + 12, TOP + 12 + index * 18, name, `fill="${colour}"`))
  }
  return `${parts.join('\n')}\n</svg>\n`
}

function text(x: number, y: number, content: string | number, attributes = ''): string {
  const escaped = String(content).replaceAll('&', '&amp;').replaceAll('<', '&lt;')
  return `<text x="${x}" y="${y}" ${attributes}>${escaped}</text>`
}

function ticks(least: number, most: number): number[] {
  const rough = (most - least) / 5
  const unit = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough) ?? unit
  const first = Math.ceil(least / step)
  return Array.from({ length: Math.floor(most / step) - first + 1 }, (_, at) => Number(((first + at) * step).toFixed(6)))
}
