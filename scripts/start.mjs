/**
 * What Trefoil does, on a fresh clone, in one command.
 *
 *   npm start                            translates a few German sentences
 *   npm start -- "Wo ist der Bahnhof?"   translates these
 *
 * Installs and builds what is missing, then runs the models that are part of the repository. Needs no download beyond
 * the dependencies.
 */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const LARGE = join(ROOT, 'models/de-en/large')
const LITTLE = join(ROOT, 'models/de-en/aligned')

const DIALOGUE = join(ROOT, 'models/dst')

// Written for this page, in the lower case that the dialogue model was trained on.
const TURNS =
  'user: hello , i am looking for a cheap hotel in the north with free parking . ' +
  'system: there are two of them . how many people will stay ? ' +
  'user: three people for two nights from friday . i also need a restaurant in the centre that serves italian food .'

const SENTENCES = [
  'Wo ist der Bahnhof?',
  'Ich habe heute keine Zeit.',
  'Kannst du mir bitte helfen?',
  'Tom hat gestern ein neues Auto gekauft.',
  'Wir gehen morgen mit den Kindern in den Park.',
  'Sie liest jeden Abend ein Buch.'
]

/** Runs a command quietly; what it printed is shown only when it fails. */
function run(command, args, onLine = () => {}) {
  return new Promise((resolve, reject) => {
    // npm is a script on Windows, which only a shell can start.
    const child = spawn(command, args, { cwd: ROOT, shell: process.platform === 'win32', stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => {
        output += text
        const line = text.trimEnd().split('\n').at(-1)
        if (line) onLine(line.trim())
      })
    }
    child.once('error', reject)
    child.once('close', (code) => {
      if (code === 0) return resolve()
      process.stderr.write(`\n${output.trimEnd()}\n`)
      reject(new Error(`${command} ${args.join(' ')} ended with code ${code}`))
    })
  })
}

/** Runs a long command under a title: on a terminal its latest line beside it, elsewhere only title and time. */
async function stage(title, command, args) {
  const start = performance.now()
  const seconds = () => `${((performance.now() - start) / 1000).toFixed(0)} s`
  const { isTTY, columns = 80 } = process.stdout
  process.stdout.write(isTTY ? title : `${title}\n`)
  await run(command, args, (line) => {
    if (isTTY) process.stdout.write(`\r\u001b[K${`${title} ${seconds()} ${line}`.slice(0, columns - 1)}`)
  })
  process.stdout.write(isTTY ? `\r\u001b[K${title} ${seconds()}\n` : `done in ${seconds()}\n`)
}

/** The latest change under some paths, in milliseconds; 0 where nothing is there. */
async function latest(...paths) {
  let newest = 0
  for (const path of paths) {
    const found = await stat(join(ROOT, path)).catch(() => undefined)
    if (!found) continue
    const inside = found.isDirectory() ? await readdir(join(ROOT, path)) : []
    newest = Math.max(newest, found.isDirectory() ? 0 : found.mtimeMs, await latest(...inside.map((name) => join(path, name))))
  }
  return newest
}

async function prepare() {
  if (!existsSync(join(ROOT, 'node_modules'))) await stage('Installing dependencies', 'npm', ['ci'])
  const sources = await latest('crates', 'src', 'Cargo.toml', 'Cargo.lock', 'package.json')
  const addons = (await readdir(ROOT)).filter((name) => name.endsWith('.node'))
  const built = Math.min(await latest(...addons), await latest('esm/index.js'))
  if (built < sources) await stage('Building (the first time takes some minutes)', process.execPath, ['scripts/build.mjs'])
}

/** Bold and grey on a terminal that wants them. */
function paint() {
  const colours = process.stdout.isTTY && !process.env.NO_COLOR
  const wrap = (code) => (text) => (colours ? `\u001b[${code}m${text}\u001b[0m` : text)
  return { bold: wrap('1'), grey: wrap('90'), green: wrap('32') }
}

/** Translates `sentences`; gives the texts and the sums of their figures. The mark that ends a text is a token too. */
async function translate(model, sentences, decoding, show = { begin() {}, chunk() {}, end() {} }) {
  const sums = { texts: [], tokens: 0, steps: 0, decodeMs: 0, draftForwards: 0, sentences: sentences.length }
  for (const sentence of sentences) {
    const generation = model.generate(sentence, { maxTokens: 64, decoding })
    show.begin(sentence)
    for await (const chunk of generation) await show.chunk(chunk)
    const { text, stats, finishReason } = await generation.result
    show.end()
    sums.texts.push(text)
    for (const key of ['tokens', 'steps', 'decodeMs', 'draftForwards']) sums[key] += stats[key]
    if (finishReason === 'stop') sums.tokens += 1
  }
  return sums
}

function table(rows) {
  const texts = rows.map((row) => row.map(String))
  const widths = texts[0].map((_, column) => Math.max(...texts.map((row) => row[column].length)))
  return texts.map((row) => row.map((text, at) => (at === 0 ? text.padEnd(widths[at]) : text.padStart(widths[at]))).join('   '))
}

/** A row of the table: `plain` is what the large model writes alone. */
function figures(name, { texts, tokens, steps, decodeMs, draftForwards }, plain) {
  const same = texts.filter((text, at) => text === plain.texts[at]).length
  return [
    name,
    tokens,
    steps,
    (steps / Math.max(1, tokens)).toFixed(2),
    draftForwards,
    (decodeMs / Math.max(1, tokens)).toFixed(2),
    `${same} of ${texts.length}`
  ]
}

/** Reads the dialogue once and asks for all its slots in parallel; beside it, the same slots asked one by one. */
async function slots(load, { bold, grey }) {
  const [line] = (await readFile(join(DIALOGUE, 'golden.jsonl'), 'utf8')).split('\n', 1)
  const { prompts } = JSON.parse(line)
  const model = await load(DIALOGUE)
  const ask = async (questions) => {
    const document = await model.read(TURNS)
    const results = await document.ask(questions, { maxTokens: 16 }).result
    await document.dispose()
    return results
  }
  const timed = async (work) => {
    const start = performance.now()
    return { results: await work(), ms: performance.now() - start }
  }
  const together = await timed(() => ask(prompts))
  const singly = await timed(async () => {
    const results = []
    for (const prompt of prompts) results.push(...(await ask([prompt])))
    return results
  })
  await model.dispose()

  const found = together.results.map(({ text }, at) => [prompts[at], text]).filter(([, text]) => text !== 'none')
  const same = together.results.filter(({ text }, at) => text === singly.results[at].text).length
  process.stdout.write(`\n${bold('Dialogue state')} ${grey(`models/dst, ${prompts.length} slots asked of one reading`)}\n\n`)
  process.stdout.write(`${grey(`  ${TURNS.replaceAll(/ (?=user:|system:)/g, '\n  ')}`)}\n\n`)
  process.stdout.write(table(found).map((row) => `  ${row}\n`).join(''))
  process.stdout.write(
    grey(
      `\n  the other ${prompts.length - found.length} slots: none. Together ${together.ms.toFixed(0)} ms, one by one ` +
        `${singly.ms.toFixed(0)} ms; the same answers in ${same} of ${prompts.length}. The model is small and makes mistakes.\n`
    )
  )
}

async function main(given) {
  await prepare()
  const { load } = await import(pathToFileURL(join(ROOT, 'esm/index.js')).href)
  const sentences = given.length > 0 ? given : SENTENCES
  const { bold, grey, green } = paint()
  const write = (text) => process.stdout.write(text)

  const model = await load(LARGE, { draft: LITTLE })
  const { kind, device, dtype } = model.info
  write(`\n${bold('German to English')} ${grey(`models/de-en/large, ${kind}, ${dtype} on ${device}`)}\n\n`)
  const { LEGEND, painter, wantsColours } = await import(pathToFileURL(join(ROOT, 'esm/cli/painting.js')).href)
  /** Writes each sentence as it comes, in the colours of who wrote what. */
  const aloud = (lead) => {
    let paint
    return {
      begin(sentence) {
        paint = wantsColours() ? painter(model) : ({ text }) => text
        write(lead(sentence))
      },
      chunk: async (chunk) => write(await paint(chunk)),
      end: () => write('\n')
    }
  }
  const plain = await translate(model, sentences, 'plain', aloud((sentence) => `  ${grey(sentence)}\n  ${green('→ ')}`))
  const rows = [figures('large alone', plain, plain)]
  rows.push(figures('lookahead', await translate(model, sentences, 'lookahead'), plain))
  for (const decoding of ['bild', 'speculative']) {
    write(`\n  ${bold(decoding)}${wantsColours() ? `: ${LEGEND}` : ''}\n`)
    rows.push(figures(decoding, await translate(model, sentences, decoding, aloud(() => '  ')), plain))
  }
  const little = await load(LITTLE)
  const alone = await translate(little, sentences, 'plain')
  rows.push(figures('little alone', { ...alone, steps: 0, draftForwards: alone.steps }, plain))

  const head = ['decoding', 'tokens', 'large steps', 'large/token', 'little steps', 'ms/token', 'same text']
  const [top, ...lines] = table([head, ...rows])
  write(`\n  ${bold(top)}\n${lines.map((line) => `  ${line}\n`).join('')}`)
  write(
    grey(
      '\n  lookahead and speculative are exact; bild may differ. A large step is one forward pass of the large model,' +
        '\n  and large/token is how many a token takes.' +
        '\n  Short sentences that repeat nothing give lookahead nothing to find. Both models are tiny, were trained on' +
        '\n  everyday sentences only, and make mistakes.\n'
    )
  )
  await Promise.all([model.dispose(), little.dispose()])
  if (given.length === 0) await slots(load, { bold, grey })
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`start: ${error.message}`)
  process.exitCode = 1
})
