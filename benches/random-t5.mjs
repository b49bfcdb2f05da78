/** T5 models of the published shapes with seeded random weights: what they cost is what a trained one costs. */
import { existsSync } from 'node:fs'
import { mkdir, open, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { cacheFolder } from '../scripts/models.mjs'

export const SHAPES = {
  't5-small': { d_model: 512, d_kv: 64, d_ff: 2048, layers: 6, heads: 8 },
  't5-base': { d_model: 768, d_kv: 64, d_ff: 3072, layers: 12, heads: 12 }
}
export const VOCABULARY = 32128
const BUCKETS = 32

/** The folder of a model whose weights are kept as `type`; made in the cache folder where it is not there yet. */
export async function randomT5(name, type = 'bf16') {
  const { d_model, d_kv, d_ff, layers, heads } = SHAPES[name]
  const folder = join(cacheFolder(), `random-${name}${type === 'bf16' ? '' : `-${type}`}`)
  const config = {
    model_type: 't5',
    architectures: ['T5ForConditionalGeneration'],
    d_model,
    d_kv,
    d_ff,
    num_heads: heads,
    num_layers: layers,
    num_decoder_layers: layers,
    vocab_size: VOCABULARY,
    feed_forward_proj: 'relu',
    tie_word_embeddings: true,
    relative_attention_num_buckets: BUCKETS,
    relative_attention_max_distance: 128,
    layer_norm_epsilon: 1e-6,
    pad_token_id: 0,
    eos_token_id: 1,
    decoder_start_token_id: 0,
    torch_dtype: type === 'bf16' ? 'bfloat16' : 'float32'
  }
  if (existsSync(join(folder, 'model.safetensors'))) return folder
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'config.json'), `${JSON.stringify(config, null, 2)}\n`)
  const tensors = [...tensorsOf(SHAPES[name])]
  let at = 0
  const bytes = type === 'bf16' ? 2 : 4
  const header = tensors.map(([tensor, shape]) => {
    const begin = at
    at += bytes * shape.reduce((product, size) => product * size, 1)
    return [tensor, { dtype: type.toUpperCase(), shape, data_offsets: [begin, at] }]
  })
  const json = Buffer.from(JSON.stringify(Object.fromEntries(header)))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  const part = join(folder, 'model.safetensors.part')
  const file = await open(part, 'w')
  const random = generator(7)
  try {
    for (const bytes of [length, json]) await file.write(bytes)
    for (const [, shape, spread] of tensors) {
      const numbers = weights(random, shape, spread)
      await file.write(type === 'bf16' ? upper(numbers) : numbers)
    }
  } finally {
    await file.close()
  }
  await rename(part, join(folder, 'model.safetensors'))
  return folder
}

/** Names, shapes and the spread of the weights; norms have none and are 1. */
function* tensorsOf({ d_model, d_kv, d_ff, layers, heads }) {
  const inner = heads * d_kv
  yield ['shared.weight', [VOCABULARY, d_model], 1]
  for (const [stack, attentions] of [['encoder', ['SelfAttention']], ['decoder', ['SelfAttention', 'EncDecAttention']]]) {
    for (let layer = 0; layer < layers; layer += 1) {
      const block = `${stack}.block.${layer}.layer`
      for (const [at, attention] of attentions.entries()) {
        yield [`${block}.${at}.layer_norm.weight`, [d_model]]
        // T5 does not scale its scores.
        yield [`${block}.${at}.${attention}.q.weight`, [inner, d_model], (d_model * d_kv) ** -0.5]
        for (const part of ['k', 'v']) yield [`${block}.${at}.${attention}.${part}.weight`, [inner, d_model], d_model ** -0.5]
        yield [`${block}.${at}.${attention}.o.weight`, [d_model, inner], inner ** -0.5]
        const biased = layer === 0 && attention === 'SelfAttention'
        if (biased) yield [`${block}.0.SelfAttention.relative_attention_bias.weight`, [BUCKETS, heads], 0.5]
      }
      const feed = `${block}.${attentions.length}`
      yield [`${feed}.layer_norm.weight`, [d_model]]
      yield [`${feed}.DenseReluDense.wi.weight`, [d_ff, d_model], d_model ** -0.5]
      yield [`${feed}.DenseReluDense.wo.weight`, [d_model, d_ff], d_ff ** -0.5]
    }
    yield [`${stack}.final_layer_norm.weight`, [d_model]]
  }
}

/** Evenly drawn weights with a standard deviation of `spread`; ones without it. */
function weights(random, shape, spread) {
  const numbers = new Float32Array(shape.reduce((product, size) => product * size, 1)).fill(1)
  if (spread === undefined) return numbers
  for (let i = 0; i < numbers.length; i += 1) numbers[i] = (random() - 0.5) * spread * Math.sqrt(12)
  return numbers
}

/** The upper halves of 32-bit floats: bfloat16. */
function upper(numbers) {
  return new Uint16Array(numbers.buffer).filter((_, at) => at % 2 === 1)
}

/** Numbers from 0 to 1, the same for the same seed (xorshift). */
export function generator(seed) {
  let state = seed
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) / 2 ** 32
  }
}
