/** The command line as a user runs it. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import test from 'ava'
import { load } from '../esm/index.js'
import { DIALOGUES, LARGE, ROOT, SMALL } from './support/models.mjs'

const CLI = join(ROOT, 'esm/cli.js')
const SENTENCE = 'Wo ist der Bahnhof?'

function trefoil(args, { input = '', onOutput = () => {} } = {}) {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [CLI, ...args], { cwd: ROOT })
    const out = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr']) {
      child[name].setEncoding('utf8').on('data', (text) => {
        out[name] += text
        onOutput(child, out)
      })
    }
    child.stdin.end(input)
    child.once('close', (code, signal) => resolve({ code, signal, ...out }))
  })
}

let answer
test.before(async () => {
  const model = await load(LARGE)
  answer = await model.generate(SENTENCE).text()
  await model.dispose()
})

test('generate writes the text and a line end', async (t) => {
  t.deepEqual(await trefoil(['generate', LARGE, SENTENCE]), { code: 0, signal: null, stdout: `${answer}\n`, stderr: '' })
})

test('generate reads the prompt from standard input', async (t) => {
  for (const args of [['generate', LARGE], ['generate', LARGE, '-']]) {
    t.is((await trefoil(args, { input: SENTENCE })).stdout, `${answer}\n`)
  }
})

test('generate --show colours nothing where nobody sees it', async (t) => {
  const { stdout } = await trefoil(['generate', LARGE, SENTENCE, '--draft', SMALL, '--decoding', 'speculative', '--show'])
  t.is(stdout, `${answer}\n`)
})

test('generate --json prints the result', async (t) => {
  const { code, stdout } = await trefoil(['generate', LARGE, SENTENCE, '--json', '--threads', '1', '--max-tokens', '4'])
  t.is(code, 0)
  const { text, tokens, finishReason, stats } = JSON.parse(stdout)
  t.true(answer.startsWith(text))
  t.is(tokens.length, 4)
  t.is(finishReason, 'length')
  t.is(stats.tokens, 4)
})

test('every option of generate reaches the engine', async (t) => {
  const args = ['--temperature', '1', '--top-k', '5', '--top-p', '0.9', '--min-p', '0.05', '--repetition-penalty', '1.1']
  const more = ['--seed', '3', '--stop', 'xyz', '--stop', 'zyx', '--decoding', 'plain', '--device', 'cpu', '--context', '99']
  t.is((await trefoil(['generate', LARGE, SENTENCE, ...args, ...more, '--offline'])).code, 0)
})

test('devices of model and draft model reach the engine', async (t) => {
  const draft = ['--draft', SMALL, '--decoding', 'speculative', '--device', 'cpu']
  const { code, stdout } = await trefoil(['generate', LARGE, SENTENCE, ...draft, '--draft-device', 'cpu'])
  t.deepEqual([code, stdout], [0, `${answer}\n`])
  for (const [args, message] of [
    [['--draft-device', 'cpu'], /^trefoil: --draft-device is 'cpu' without --draft; give both/],
    [[...draft, '--draft-device', 'abacus'], /options\.draft\.device is 'abacus'; allowed: 'cpu'/],
    [['--device', 'cuda:1,cuda:1'], /options\.device\[\d\] is 'cuda:1'; /],
    [['--device', 'cuda:0,cpu'], /options\.device\[1\] is 'cpu'; allowed: 'cuda:N'/]
  ]) {
    const { code, stderr } = await trefoil(['generate', LARGE, SENTENCE, ...args])
    t.is(code, 1)
    t.regex(stderr, message)
  }
})

test('ask answers prompts about a text, a file or standard input', async (t) => {
  const { context, texts } = JSON.parse((await readFile(join(DIALOGUES, 'golden.jsonl'), 'utf8')).split('\n')[0])
  const prompts = ['attraction area:', 'restaurant book day:']
  const expected = `attraction area:      ${texts[0]}\nrestaurant book day:  ${texts[14]}\n`
  for (const [document, input] of [[context, ''], ['-', context]]) {
    const { code, stdout } = await trefoil(['ask', DIALOGUES, document, ...prompts], { input })
    t.deepEqual([code, stdout], [0, expected])
  }
  const { stdout } = await trefoil(['ask', DIALOGUES, context, ...prompts, '--json', '--max-tokens', '9'])
  const { document, answers } = JSON.parse(stdout)
  t.is(document.encoderForwards, 1)
  t.deepEqual(answers.map(({ prompt, text }) => [prompt, text]), [[prompts[0], texts[0]], [prompts[1], texts[14]]])
  const { code, stderr } = await trefoil(['ask', DIALOGUES, context])
  t.is(code, 1)
  t.regex(stderr, /a prompt is missing; usage: trefoil ask MODEL DOCUMENT PROMPT…/)
})

test('extract fills a schema from a document', async (t) => {
  const { context } = JSON.parse((await readFile(join(DIALOGUES, 'golden.jsonl'), 'utf8')).split('\n')[0])
  const folder = await mkdtemp(join(tmpdir(), 'trefoil-test-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  const file = async (name, content) => {
    await writeFile(join(folder, name), content)
    return join(folder, name)
  }
  const pricerange = { enum: ['cheap', 'moderate', 'expensive'] }
  const train = { type: 'object', properties: { day: { type: 'string' } } }
  const properties = { price: { ...pricerange, description: 'restaurant pricerange:' }, train }
  const schema = await file('schema.json', JSON.stringify({ type: 'object', properties, required: ['price'] }))
  t.like(await trefoil(['extract', DIALOGUES, context, schema]), { code: 0, stdout: 'price  expensive\n', stderr: '' })
  const { code, stdout } = await trefoil(['extract', DIALOGUES, '-', schema, '--json'], { input: context })
  const { document, value, confidence } = JSON.parse(stdout)
  t.deepEqual([code, document.encoderForwards, value], [0, 1, { price: 'expensive' }])
  t.deepEqual(Object.keys(confidence), ['price', 'train.day'])

  properties.price.enum = ['cheap']
  const narrow = await file('narrow.json', JSON.stringify({ type: 'object', properties }))
  for (const [args, message] of [
    [[context], /^trefoil: a schema is missing; usage/],
    [[context, schema, 'more'], /'more' is one argument too many/],
    [[context, join(folder, 'none.json')], /none.json/],
    [[context, await file('broken.json', '{')], /broken.json is no JSON/],
    [[context, await file('text.json', '"hotel"')], /schema is no object/],
    [[context, narrow], /'price' can't be 'expensive': expected 'cheap'/]
  ]) {
    const { code, stdout, stderr } = await trefoil(['extract', DIALOGUES, ...args])
    t.deepEqual([code, stdout], [1, ''])
    t.regex(stderr, message)
  }
})

test('help and version are printed', async (t) => {
  const { version } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8'))
  t.is((await trefoil(['--version'])).stdout, `${version}\n`)
  for (const args of [[], ['--help'], ['generate', '--help'], ['ask', '--help'], ['extract', '--help']]) {
    const { code, stdout } = await trefoil(args)
    t.is(code, 0)
    t.regex(stdout, /Usage: trefoil/)
  }
})

for (const [title, args, message] of [
  ['an unknown command', ['fly'], /^trefoil: unknown command 'fly'; allowed: .*generate/],
  ['no model', ['generate'], /^trefoil: a model is missing/],
  ['an unknown option', ['generate', LARGE, 'a', '--fast'], /^trefoil: Unknown option '--fast'/],
  ['an argument too many', ['generate', LARGE, 'Wo', 'ist'], /^trefoil: 'ist' is one argument too many/],
  ['a number that is none', ['generate', LARGE, 'a', '--max-tokens', 'many'], /^trefoil: --max-tokens is 'many'/],
  ['an empty number', ['generate', LARGE, 'a', '--seed', ''], /^trefoil: --seed is ''/],
  ['a number out of range', ['generate', LARGE, 'a', '--max-tokens=-1'], /^trefoil: .*maxTokens is -1; allowed/],
  ['a decoding that is none', ['generate', LARGE, 'a', '--decoding', 'magic'], /^trefoil: .*'magic'/],
  ['a model that is not there', ['generate', './no/model', 'a'], /^trefoil: .*no\/model/],
  ['a chat with a model that has no template', ['generate', LARGE, 'a', '--chat'], /^trefoil: .*chat template/]
]) {
  test(`${title} is one line and exit code 1`, async (t) => {
    const { code, stdout, stderr } = await trefoil(args)
    t.is(code, 1)
    t.is(stdout, '')
    t.regex(stderr, message)
    t.is(stderr.trimEnd().split('\n').length, 1, stderr)
  })
}

const LONG = ['--max-tokens', '4000', '--temperature', '5', '--seed', '7']

test('an interrupt ends the text with exit code 130', async (t) => {
  if (process.platform === 'win32') return t.pass('there are no signals to send')
  let sent = false
  const onOutput = (child, { stdout }) => {
    if (sent || stdout.length < 10) return
    sent = true
    child.kill('SIGINT')
  }
  const { code, stderr } = await trefoil(['generate', LARGE, SENTENCE, ...LONG], { onOutput })
  t.is(code, 130)
  t.is(stderr, '')
})

test('Ctrl-C ends the wait for standard input', async (t) => {
  const child = spawn(process.execPath, [CLI, 'generate', LARGE], { cwd: ROOT })
  // Nothing comes, and nothing says when it listens.
  const knock = setInterval(() => child.kill('SIGINT'), 500)
  const [code, signal] = await once(child, 'close')
  clearInterval(knock)
  t.true(code === 130 || signal === 'SIGINT')
})

test('what can’t be read or written is said', async (t) => {
  const folder = await trefoil(['tune', LARGE, ROOT, '--draft', SMALL])
  t.is(folder.code, 1)
  t.regex(folder.stderr, /^trefoil: .+ can't be read: EISDIR/)
  if (process.platform !== 'linux') return
  const full = await open('/dev/full', 'w')
  const child = spawn(process.execPath, [CLI, '--help'], { stdio: ['ignore', full.fd, 'pipe'] })
  const [said, [code]] = await Promise.all([text(child.stderr), once(child, 'close')])
  await full.close()
  t.is(code, 1)
  t.regex(said, /^trefoil: can't write to standard output: ENOSPC/)
})

test('a reader that has seen enough ends it quietly', async (t) => {
  let closed = false
  const onOutput = (child) => {
    if (!closed) child.stdout.destroy()
    closed = true
  }
  const { code, stderr } = await trefoil(['generate', LARGE, SENTENCE, ...LONG], { onOutput })
  t.is(code, 0)
  t.is(stderr, '')
})
