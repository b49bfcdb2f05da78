/** A line plot as SVG, for benches: no dependencies, the same file from the same figures. */

const [WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM] = [720, 420, 60, 40, 190, 50]
const COLOURS = ['#1b6ca8', '#c0392b', '#1e8449', '#b9770e', '#6c3483', '#117a65', '#7b7d7d', '#a04000']

/** Draws `series`, each `{ name, dashed, points: [[x, y], …] }`; a solid and a dashed line can share a colour in turn. */
export function plot({ title, x, y, series }) {
  const all = series.flatMap(({ points }) => points)
  const [most, highest] = [Math.max(1, ...all.map(([at]) => at)), Math.max(1, ...all.map(([, value]) => value))]
  const atX = (value) => LEFT + (value / most) * (WIDTH - LEFT - RIGHT)
  const atY = (value) => HEIGHT - BOTTOM - (value / highest) * (HEIGHT - TOP - BOTTOM)
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>`,
    text(LEFT, 22, title, 'font-weight="bold" font-size="15"'),
    text((WIDTH - RIGHT + LEFT) / 2, HEIGHT - 12, x, 'text-anchor="middle"'),
    text(14, TOP - 8, y)
  ]
  for (const value of ticks(highest)) {
    parts.push(`<path d="M${LEFT} ${atY(value)}H${WIDTH - RIGHT}" stroke="#ddd"/>`, text(LEFT - 6, atY(value) + 4, value, 'text-anchor="end"'))
  }
  for (const value of ticks(most)) parts.push(text(atX(value), HEIGHT - BOTTOM + 18, value, 'text-anchor="middle"'))
  parts.push(`<path d="M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}" fill="none" stroke="#333"/>`)
  for (const [index, { name, dashed, points }] of series.entries()) {
    const colour = COLOURS[(index >> 1) % COLOURS.length]
    const sorted = points.toSorted(([a], [b]) => a - b)
    const line = sorted.map(([at, value]) => `${atX(at).toFixed(1)},${atY(value).toFixed(1)}`).join(' ')
    const dash = dashed ? ' stroke-dasharray="5 4"' : ''
    parts.push(`<polyline points="${line}" fill="none" stroke="${colour}" stroke-width="2"${dash}/>`)
    parts.push(text(WIDTH - RIGHT + 12, TOP + 12 + index * 18, name, `fill="${colour}"`))
  }
  return `${parts.join('\n')}\n</svg>\n`
}

function text(x, y, content, attributes = '') {
  const escaped = String(content).replaceAll('&', '&amp;').replaceAll('<', '&lt;')
  return `<text x="${x}" y="${y}" ${attributes}>${escaped}</text>`
}

function ticks(most) {
  const rough = most / 5
  const unit = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough)
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, at) => Number((at * step).toFixed(6)))
}
