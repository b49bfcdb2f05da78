"""The tiny models of fixtures/: what each is for, its config as a hub would hold it, its weights.

Every weight is drawn from a generator seeded by the fixture's seed and the weight's own name, so
that adding a model or reordering the weights changes nothing else. Gains are well above those of
a fresh training run: logits spread, texts vary, and attention matters.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np
import torch

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "max_position_embeddings": 256,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 80,
}

T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 40,
    "d_kv": 8,
    "d_model": 32,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "model_type": "t5",
    "num_heads": 2,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 80,
}


@dataclass(frozen=True)
class Fixture:
    """One folder of fixtures/."""

    name: str
    config: dict
    dtype: torch.dtype
    seed: int
    tokenizer: str | None = None
    shards: int = 1
    # Config keys that must change some text when they are replaced: proof that the text tests them.
    matters: dict = field(default_factory=dict)
    # Tensors that old checkpoints carry and no model reads.
    stray: dict = field(default_factory=dict)
    # The least lead, in logits, of a pick over the runner-up.
    gap: float = 2e-3
    # Tokens of each text, where it is not the usual number.
    tokens: int | None = None
    gguf: str | None = None

    @property
    def seq2seq(self) -> bool:
        return self.config.get("is_encoder_decoder", False)


FIXTURES = [
    # No rope_theta, no head_dim, no dtype: the oldest configs leave them to the defaults.
    Fixture(
        "llama2",
        LLAMA | {"num_key_value_heads": 4, "rope_scaling": None},
        torch.float32,
        seed=1,
    ),
    Fixture(
        "llama3",
        LLAMA
        | {
            "eos_token_id": [2, 3],
            "max_position_embeddings": 4096,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 512,
                "rope_type": "llama3",
            },
            "torch_dtype": "bfloat16",
        },
        torch.bfloat16,
        seed=46,
        shards=2,
        matters={"rope_scaling": None},
    ),
    # Three query heads to a key head, and a width that no vector register divides.
    Fixture(
        "smollm2",
        LLAMA
        | {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vocab_size": 320,
        },
        torch.bfloat16,
        seed=10,
        tokenizer="bytes",
        gguf="F32",
    ),
    Fixture(
        "mistral",
        LLAMA
        | {
            "architectures": ["MistralForCausalLM"],
            "dtype": "float16",
            "head_dim": 8,
            "model_type": "mistral",
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "sliding_window": 8,
        },
        torch.float16,
        seed=4,
        matters={"sliding_window": None},
    ),
    # Every row is a multiple of 32, so that Q8_0 can hold it.
    Fixture(
        "qwen2",
        {k: v for k, v in LLAMA.items() if k != "attention_bias"}
        | {
            "architectures": ["Qwen2ForCausalLM"],
            "intermediate_size": 64,
            "max_window_layers": 2,
            "model_type": "qwen2",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "sliding_window": 256,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
        },
        torch.bfloat16,
        seed=4,
        gguf="Q8_0",
    ),
    # Four heads of 16 over a width of 32: the heads are wider than the model.
    Fixture(
        "qwen3",
        LLAMA
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "dtype": "bfloat16",
            "head_dim": 16,
            "model_type": "qwen3",
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        torch.bfloat16,
        seed=51,
    ),
    Fixture(
        "llama-linear",
        LLAMA
        | {
            "rope_theta": 10000.0,
            "rope_scaling": {"factor": 4.0, "type": "linear"},
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        },
        torch.bfloat16,
        seed=17,
        matters={"rope_scaling": None},
    ),
    # tie_word_embeddings is absent, as in the first T5 configs: tied, and its output is scaled.
    Fixture(
        "t5",
        {k: v for k, v in T5.items() if k != "tie_word_embeddings"}
        | {
            "feed_forward_proj": "relu",
            "n_positions": 512,
            "num_decoder_layers": 2,
            "num_layers": 1,
            "vocab_size": 160,
        },
        torch.float16,
        seed=47,
        tokenizer="unigram",
        stray={"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (32, 2)},
        gguf="F16",
    ),
    Fixture(
        "t5-v1.1",
        T5 | {"num_decoder_layers": 1, "num_layers": 2, "torch_dtype": "bfloat16"},
        torch.bfloat16,
        seed=27,
    ),
    Fixture(
        "flan-t5",
        T5 | {"n_positions": 512, "num_decoder_layers": 3, "num_layers": 2, "torch_dtype": "bfloat16"},
        torch.bfloat16,
        seed=37,
        shards=2,
    ),
    # Few buckets and a short reach, so that the text runs past both.
    Fixture(
        "mt5",
        {k: v for k, v in T5.items() if k != "relative_attention_max_distance"}
        | {
            "architectures": ["MT5ForConditionalGeneration"],
            "model_type": "mt5",
            "num_decoder_layers": 2,
            "num_layers": 1,
            "relative_attention_max_distance": 24,
            "relative_attention_num_buckets": 12,
            "tokenizer_class": "T5Tokenizer",
        },
        torch.bfloat16,
        seed=7,
        matters={"relative_attention_max_distance": 128},
    ),
]


def draw(fixture: Fixture, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Draws one weight, rounded to what the fixture stores."""
    rng = np.random.default_rng([fixture.seed, zlib.crc32(name.encode())])
    noise = rng.standard_normal(shape)
    inward = shape[-1] ** -0.5
    tied_t5 = fixture.seq2seq and fixture.config.get("tie_word_embeddings", True)
    if "norm" in name:
        weight = 1.0 + 0.3 * noise
        # A tied T5 divides its output by the root of the width; this keeps its logits spread.
        if tied_t5 and name == "decoder.final_layer_norm.weight":
            weight *= 4.0
    elif name.endswith("bias"):
        weight = 0.5 * noise
    elif "relative_attention_bias" in name:
        weight = 1.5 * noise
    elif "lm_head" in name:
        weight = 4.0 * inward * noise
        # No text may end, so that its length is known.
        weight[:4] *= 0.1
    elif "embed" in name or "shared" in name:
        weight = noise
        weight[:4] *= 0.5
    elif fixture.seq2seq and name.endswith((".q.weight", ".k.weight")):
        weight = 1.5 * inward * fixture.config["d_kv"] ** -0.25 * noise
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        weight = 1.8 * inward * noise
    elif tied_t5:
        # The head sees the input's own embedding again: loud layers keep a text from repeating it.
        weight = 4.0 * inward * noise
    else:
        weight = 2.2 * inward * noise
    return torch.from_numpy(weight).to(fixture.dtype)


def weights(fixture: Fixture) -> dict[str, torch.Tensor]:
    """All weights by the names that checkpoints use."""
    shapes = llama_shapes(fixture.config) if not fixture.seq2seq else t5_shapes(fixture.config)
    shapes |= fixture.stray
    return {name: draw(fixture, name, shape) for name, shape in sorted(shapes.items())}


def llama_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or width // heads
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.post_attention_layernorm.weight": (width,),
            f"{layer}.self_attn.q_proj.weight": (heads * head_dim, width),
            f"{layer}.self_attn.k_proj.weight": (kv_heads * head_dim, width),
            f"{layer}.self_attn.v_proj.weight": (kv_heads * head_dim, width),
            f"{layer}.self_attn.o_proj.weight": (width, heads * head_dim),
            f"{layer}.mlp.gate_proj.weight": (inner, width),
            f"{layer}.mlp.up_proj.weight": (inner, width),
            f"{layer}.mlp.down_proj.weight": (width, inner),
        }
        if config["model_type"] == "qwen2":
            for p, n in [("q", heads), ("k", kv_heads), ("v", kv_heads)]:
                shapes[f"{layer}.self_attn.{p}_proj.bias"] = (n * head_dim,)
        if config["model_type"] == "qwen3":
            shapes[f"{layer}.self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (head_dim,)
    return shapes


def t5_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    width, d_ff = config["d_model"], config["d_ff"]
    inner = config["num_heads"] * config["d_kv"]
    shapes = {"shared.weight": (config["vocab_size"], width)}
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (config["vocab_size"], width)

    def attention(prefix: str) -> None:
        shapes.update({f"{prefix}.{p}.weight": (inner, width) for p in "qkv"})
        shapes[f"{prefix}.o.weight"] = (width, inner)

    for stack, depth in [("encoder", config["num_layers"]), ("decoder", config["num_decoder_layers"])]:
        shapes[f"{stack}.final_layer_norm.weight"] = (width,)
        buckets = (config["relative_attention_num_buckets"], config["num_heads"])
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = buckets
        for i in range(depth):
            block = f"{stack}.block.{i}.layer"
            sublayers = ["SelfAttention", "EncDecAttention"][: 2 if stack == "decoder" else 1]
            for j, sublayer in enumerate(sublayers):
                attention(f"{block}.{j}.{sublayer}")
                shapes[f"{block}.{j}.layer_norm.weight"] = (width,)
            last = len(sublayers)
            gated = config["feed_forward_proj"].startswith("gated")
            for p in ["wi_0", "wi_1"] if gated else ["wi"]:
                shapes[f"{block}.{last}.DenseReluDense.{p}.weight"] = (d_ff, width)
            shapes[f"{block}.{last}.DenseReluDense.wo.weight"] = (width, d_ff)
            shapes[f"{block}.{last}.layer_norm.weight"] = (width,)
    return shapes
