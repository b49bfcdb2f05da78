/** What callers and files get wrong: each is a typed error that names it, and the next good call works. */
import { copyFile, mkdir, mkdtemp, open, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import {
  ContextOverflowError,
  DownloadError,
  InvalidOptionError,
  load,
  ModelLoadError,
  OutOfMemoryError
} from '../esm/index.js'
import { LARGE, SMALL } from './support/models.mjs'

const SENTENCE = 'Wo ist der Bahnhof?'
const FILES = ['config.json', 'generation_config.json', 'tokenizer.json', 'model.safetensors']

let model
let answer
let folder
test.before(async () => {
  model = await load(LARGE, { contextLength: 128 })
  answer = await model.generate(SENTENCE).text()
  folder = await mkdtemp(join(tmpdir(), 'trefoil-test-'))
})
test.after.always(async () => {
  await model?.dispose()
  await rm(folder, { recursive: true, force: true })
})

const longText = 'Wort '.repeat(2_000_000)

/** Options of a generation, and what the message must name. */
const OPTIONS = {
  'maxTokens -1': [{ maxTokens: -1 }, /maxTokens is -1; allowed: /],
  'maxTokens NaN': [{ maxTokens: Number.NaN }, /maxTokens is NaN/],
  'maxTokens 1.5': [{ maxTokens: 1.5 }, /maxTokens is 1\.5/],
  'maxTokens 1e12': [{ maxTokens: 1e12 }, /maxTokens is 1000000000000/],
  'maxTokens as text': [{ maxTokens: '5' }, /maxTokens is '5'/],
  'an unknown option': [{ maxtokens: 5 }, /unknown option 'maxtokens'; allowed: .*maxTokens/],
  'temperature NaN': [{ temperature: Number.NaN }, /temperature is NaN/],
  'temperature -1': [{ temperature: -1 }, /temperature is -1/],
  'temperature 1e308': [{ temperature: 1e308 }, /temperature is /],
  'topP 2': [{ topP: 2 }, /topP is 2/],
  'topK -1': [{ topK: -1 }, /topK is -1/],
  'minP as a list': [{ minP: [] }, /minP is a list/],
  'repetitionPenalty 0': [{ repetitionPenalty: 0 }, /repetitionPenalty is 0/],
  'seed -1': [{ seed: -1 }, /seed is -1/],
  'seed 2⁶⁴': [{ seed: 2 ** 64 }, /seed is /],
  'seed as a bigint': [{ seed: 5n }, /seed is a bigint/],
  'stop as an empty string': [{ stop: '' }, /stop is ''/],
  'stop with a number': [{ stop: ['a', 5] }, /stop is 5/],
  '10⁵ stop strings': [{ stop: Array.from({ length: 1e5 }, (_, at) => `s${at}`) }, /stop is a list of 100000/],
  'a decoding that is none': [{ decoding: 'magic' }, /decoding is 'magic'/],
  'a decoding with an unknown field': [{ decoding: { type: 'plain', magic: 1 } }, /magic/],
  'a signal that is none': [{ signal: {} }, /signal is an object; allowed: an AbortSignal/],
  'logprobs as a number': [{ logprobs: 1 }, /logprobs is 1; allowed: true or false/],
  'options as a string': ['fast', /options is 'fast'; allowed: an object/],
  'options as a list': [[1], /options is a list/]
}

for (const [title, [options, message]] of Object.entries(OPTIONS)) {
  test(`${title} is an InvalidOptionError`, async (t) => {
    const error = await t.throwsAsync(model.generate(SENTENCE, options).result, { instanceOf: InvalidOptionError, message })
    t.is(error.code, 'INVALID_OPTION')
    t.is(await model.generate(SENTENCE).text(), answer)
  })
}

const PROMPTS = {
  undefined: undefined,
  null: null,
  'a number': 5,
  'an object': {},
  'an empty list': [],
  'a function': () => {},
  'a message without content': [{ role: 'user' }],
  'a message with another key': [{ role: 'user', content: 'a', name: 'b' }],
  'messages for a model without a template': [{ role: 'user', content: 'a' }]
}

for (const [title, prompt] of Object.entries(PROMPTS)) {
  test(`${title} as a prompt is an InvalidOptionError`, async (t) => {
    await t.throwsAsync(model.generate(prompt).result, { instanceOf: InvalidOptionError, message: /prompt/ })
  })
}

test('a circle in the options ends', async (t) => {
  const circle = {}
  circle.decoding = circle
  await t.throwsAsync(model.generate(SENTENCE, circle).result, { instanceOf: InvalidOptionError })
})

test('an option whose getter throws throws that', async (t) => {
  const mine = new Error('mine')
  const options = {
    get maxTokens() {
      throw mine
    }
  }
  await t.throwsAsync(model.generate(SENTENCE, options).result, { is: mine })
})

test('a prompt that is longer than the context names both numbers', async (t) => {
  const prompt = 'Das ist sehr gut. '.repeat(100)
  const { length } = await model.tokenize(prompt)
  const error = await t.throwsAsync(model.generate(prompt).result, { instanceOf: ContextOverflowError })
  t.true(error.message.includes(String(length)) && error.message.includes('128'), error.message)
  t.is(await model.generate(SENTENCE).text(), answer)
})

test('a prompt of 10 MB is refused at once', async (t) => {
  const before = performance.now()
  const error = await t.throwsAsync(model.generate(longText).result, { instanceOf: ContextOverflowError, message: /tokens; allowed are 128/ })
  t.true(error.message.length < 300, error.message)
  t.true(performance.now() - before < 1000, `${performance.now() - before} ms`)
  t.is(await model.generate(SENTENCE).text(), answer)
})

for (const [title, prompt] of Object.entries({
  'an empty prompt': '',
  'lone surrogates': '\ud800 Haus \udc00',
  'NUL bytes': 'Haus\0\0Hof',
  'an unknown script': '𓀀𓁐 ᚠᚢ 👩‍👩‍👧‍👦'
})) {
  test(`${title} can be read`, async (t) => {
    const { text, finishReason } = await model.generate(prompt, { maxTokens: 20 }).result
    t.is(typeof text, 'string')
    t.true(['stop', 'length'].includes(finishReason))
    t.true(text.isWellFormed?.() ?? true)
  })
}

test('tokens that are none are refused by place', async (t) => {
  for (const [tokens, message] of [
    [[1, -1], /tokens\[1\] is -1/],
    [[0.5], /tokens\[0\] is 0\.5/],
    [['1'], /tokens\[0\] is '1'/],
    ['12', /tokens is '12'/],
    [undefined, /tokens is undefined/],
    [[4e9], /4000000000/]
  ]) {
    await t.throwsAsync(model.detokenize(tokens), { instanceOf: InvalidOptionError, message })
  }
  await t.throwsAsync(model.tokenize(5), { instanceOf: InvalidOptionError, message: /text is 5/ })
})

const LOAD_OPTIONS = {
  'threads 0': [{ threads: 0 }, /threads is 0/],
  'workers 0': [{ workers: 0 }, /workers is 0; allowed: a whole number from 1 to 64/],
  'a thousand workers': [{ workers: 1000 }, /workers is 1000/],
  'threads NaN': [{ threads: Number.NaN }, /threads is NaN/],
  'contextLength -5': [{ contextLength: -5 }, /contextLength is -5/],
  'cacheType q4': [{ cacheType: 'q4' }, /cacheType is 'q4'; allowed: 'f32', 'f16' or 'bf16'/],
  'memoryLimit as text': [{ memoryLimit: '4GB' }, /memoryLimit is '4GB'/],
  'an unknown device': [{ device: 'abacus' }, /device is 'abacus'/],
  'a card that is no number': [{ device: 'cuda:x' }, /device is 'cuda:x'; allowed: 'auto', 'cpu', 'cuda' or 'cuda:N'/],
  'card -1': [{ device: 'cuda:-1' }, /device is 'cuda:-1'/],
  'card 2⁶⁴': [{ device: 'cuda:18446744073709551616' }, /device is 'cuda:18446744073709551616'/],
  'a device that is no text': [{ device: 0 }, /device is 0; allowed: 'auto', 'cpu'/],
  'no device at all': [{ device: [] }, /device is a list of 0; allowed: .*, or a list of cards/],
  'a card twice': [{ device: ['cuda:1', 'cuda:1', 7] }, /device\[1\] is 'cuda:1'; allowed: 'cuda:N', N being .* not yet in the list/],
  'the CPU in a list': [{ device: ['cpu', 'cuda:1'] }, /device\[0\] is 'cpu'/],
  'a list with something else': [{ device: ['cuda:1', {}] }, /device\[1\] is an object/],
  'a draft model on auto': [{ draft: { model: LARGE, device: 'auto' } }, /draft\.device is 'auto'; allowed: 'cpu', 'cuda' or 'cuda:N'/],
  'a device for first layers': [{ draft: { layers: 2, device: 'cpu' } }, /draft is an object; allowed: .* \{ layers \} or \{ model, device \}/],
  'a device and no draft model': [{ draft: { device: 'cpu' } }, /draft is an object/],
  'a draft model with an unknown option': [{ draft: { model: LARGE, threads: 2 } }, /draft has an unknown option 'threads'; allowed: layers, model, device/],
  'an unknown dtype': [{ dtype: 'f12' }, /dtype is 'f12'/],
  'an unknown option': [{ treads: 2 }, /unknown option 'treads'/],
  'onProgress that is none': [{ onProgress: true }, /onProgress is true; allowed: a function/],
  'offline as text': [{ offline: 'yes' }, /offline is 'yes'/]
}

for (const [title, [options, message]] of Object.entries(LOAD_OPTIONS)) {
  test(`load: ${title} is an InvalidOptionError`, async (t) => {
    await t.throwsAsync(load(LARGE, options), { instanceOf: InvalidOptionError, message })
  })
}

for (const [title, source] of Object.entries({ 'an empty source': '', 'a source with NUL': 'a\0b', 'a number': 5, null: null })) {
  test(`load: ${title} is an InvalidOptionError`, async (t) => {
    await t.throwsAsync(load(source), { instanceOf: InvalidOptionError })
  })
}

test('load: a path that does not exist is a ModelLoadError that names it', async (t) => {
  await t.throwsAsync(load('./no/such/folder'), { instanceOf: ModelLoadError, message: /no\/such\/folder/ })
  await t.throwsAsync(load('./none.gguf'), { instanceOf: ModelLoadError, message: /none\.gguf/ })
  await t.throwsAsync(load('no-such/model', { offline: true }), { instanceOf: DownloadError, message: /no-such\/model/ })
})

test('load: too little memory is an OutOfMemoryError with its sums', async (t) => {
  await t.throwsAsync(load(LARGE, { memoryLimit: 1_000_000 }), { instanceOf: OutOfMemoryError, message: /1000000/ })
})

/** A copy of the small model in which `change` has broken something. */
async function broken(name, change) {
  const path = join(folder, name)
  await mkdir(path)
  for (const file of FILES) await copyFile(join(SMALL, file), join(path, file))
  await change((file) => join(path, file))
  return path
}

async function edit(path, change) {
  const config = JSON.parse(await readFile(path, 'utf8'))
  change(config)
  await writeFile(path, JSON.stringify(config))
}

const BROKEN = {
  'no config': (at) => rm(at('config.json')),
  'no tokenizer': (at) => rm(at('tokenizer.json')),
  'no weights': (at) => rm(at('model.safetensors')),
  'a config that is no JSON': (at) => writeFile(at('config.json'), '{"model_type": "t5",'),
  'an unknown architecture': (at) => edit(at('config.json'), (config) => (config.model_type = 'abacus')),
  'zero heads': (at) => edit(at('config.json'), (config) => (config.num_heads = 0)),
  '2³¹ layers': (at) => edit(at('config.json'), (config) => (config.num_decoder_layers = 2 ** 31)),
  'another width': (at) => edit(at('config.json'), (config) => (config.d_model = 4096)),
  'weights cut in half': async (at) => {
    const file = await open(at('model.safetensors'), 'r+')
    await file.truncate((await file.stat()).size >> 1)
    await file.close()
  },
  'weights cut to a byte': (at) => writeFile(at('model.safetensors'), 'x'),
  'empty weights': (at) => writeFile(at('model.safetensors'), ''),
  'a header of 2⁶³ bytes': (at) => writeFile(at('model.safetensors'), Buffer.from('ffffffffffffff7f7b7d', 'hex')),
  'a tokenizer that is none': (at) => writeFile(at('tokenizer.json'), '[]'),
  'a folder in place of weights': async (at) => {
    await rm(at('model.safetensors'))
    await mkdir(at('model.safetensors'))
  },
  'a link to itself': async (at) => {
    await rm(at('config.json'))
    await symlink('config.json', at('config.json'))
  }
}

for (const [title, change] of Object.entries(BROKEN)) {
  test(`load: ${title} is a ModelLoadError within a second or two`, async (t) => {
    const path = await broken(title.replaceAll(' ', '-'), change)
    const before = performance.now()
    const error = await t.throwsAsync(load(path), { instanceOf: ModelLoadError })
    t.true(error.message.length > 10)
    t.true(performance.now() - before < 5000)
    t.is(await model.generate(SENTENCE).text(), answer)
  })
}

test('load: a folder called model.gguf, an empty and a random .gguf file are ModelLoadErrors', async (t) => {
  const at = (name) => join(folder, name)
  await mkdir(at('folder.gguf'))
  await writeFile(at('empty.gguf'), '')
  await writeFile(at('random.gguf'), Buffer.from('GGUF'.padEnd(4096, '\u0003\uffff')))
  for (const name of ['folder.gguf', 'empty.gguf', 'random.gguf']) {
    await t.throwsAsync(load(at(name)), { instanceOf: ModelLoadError }, name)
  }
})
