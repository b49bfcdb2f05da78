"""GGUF twins of some fixtures, named and laid out as llama.cpp's converter lays them out.

Facts that a reader of such files meets: Llama's query and key rows are permuted so that rotary pairs
lie side by side (Qwen's and T5's are not); vectors stay F32; a tied head is absent; T5's stacks are
`enc.blk` and `dec.blk`, its decoder's depth has a key of its own, and neither the reach of its
relative positions nor the vocabulary's size is written.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from golden_models import Fixture
from golden_tokenizers import CHAT_TEMPLATE

ARCH = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "t5": gguf.MODEL_ARCH.T5}
FILE_TYPE = {"F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16, "Q8_0": LlamaFileType.MOSTLY_Q8_0}

# Every type that a weight may have, and how many of its values make a block.
QUANTS = [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K]


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Row 2i of a head becomes its old row i, row 2i + 1 its old row i + half."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write(
    path: Path, fixture: Fixture, tensors: dict[str, torch.Tensor], vocabulary
) -> dict[str, torch.Tensor]:
    """Writes the file and returns the weights, in f32, as a reader of it sees them."""
    config = fixture.config
    arch = ARCH[config["model_type"]]
    kind = Type[fixture.gguf]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(fixture.name)
    if fixture.seq2seq:
        depth = max(config["num_layers"], config["num_decoder_layers"])
        add_t5_parameters(writer, config)
    else:
        depth = config["num_hidden_layers"]
        add_llama_parameters(writer, config)
    writer.add_file_type(FILE_TYPE[fixture.gguf])
    vocabulary(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    names = gguf.get_tensor_name_map(arch, depth)
    seen = {}
    for name, weight in tensors.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"{name} has no name in a {config['model_type']} file")
        values = weight.float().numpy()
        heads = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
        key = heads.get(".".join(name.split(".")[-2:])) if config["model_type"] == "llama" else None
        stored = permute(values, config[key]) if key else values
        if stored.ndim == 1 or kind == Type.F32:
            writer.add_tensor(target, stored)
            seen[name] = weight.float()
            continue
        writer.add_tensor(target, gguf.quants.quantize(stored, kind), raw_dtype=kind)
        # Blocks lie along rows, so what a reader sees does not depend on the rows' order.
        read = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        seen[name] = torch.from_numpy(np.array(read, dtype=np.float32).reshape(values.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return seen


def add_llama_parameters(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config["model_type"] == "llama":
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])


def add_t5_parameters(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_context_length(config.get("n_positions", 512))
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(config["d_ff"])
    writer.add_block_count(config["num_layers"])
    writer.add_decoder_block_count(config["num_decoder_layers"])
    writer.add_head_count(config["num_heads"])
    writer.add_key_length(config["d_kv"])
    writer.add_value_length(config["d_kv"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_relative_attn_buckets_count(config["relative_attention_num_buckets"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_decoder_start_token_id(config["decoder_start_token_id"])


def bytes_vocabulary(tokenizer: Tokenizer, merges: list):
    """A byte-level BPE vocabulary, called `gpt2`; `pre` names how text is split before it."""

    def add(writer: gguf.GGUFWriter) -> None:
        count = tokenizer.get_vocab_size()
        special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        kinds = [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(count)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([tokenizer.id_to_token(i) for i in range(count)])
        writer.add_token_types(kinds)
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_add_bos_token(False)
        writer.add_chat_template(CHAT_TEMPLATE)

    return add


def letters_vocabulary(count: int):
    """Three special tokens and single characters, for a model that is tested by token ids."""

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        writer.add_token_list(special + [chr(33 + i) for i in range(count - len(special))])
        kinds = [gguf.TokenType.CONTROL] * len(special) + [gguf.TokenType.NORMAL] * (count - len(special))
        writer.add_token_types(kinds)
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(False)

    return add


def sentencepiece_vocabulary(proto: sentencepiece_model_pb2.ModelProto, model: str):
    """A SentencePiece vocabulary: `t5` for a unigram, `llama` for a BPE."""

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre("default")
        writer.add_token_list([piece.piece.encode() for piece in proto.pieces])
        writer.add_token_scores([piece.score for piece in proto.pieces])
        # SentencePiece's numbers for kinds of piece are GGUF's.
        writer.add_token_types([piece.type for piece in proto.pieces])
        if model == "t5":
            writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
            writer.add_remove_extra_whitespaces(proto.normalizer_spec.remove_extra_whitespaces)
            writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
            writer.add_eos_token_id(1)
            writer.add_unk_token_id(2)
            writer.add_pad_token_id(0)
            writer.add_add_bos_token(False)
            writer.add_add_eos_token(True)
        else:
            writer.add_bos_token_id(1)
            writer.add_eos_token_id(2)
            writer.add_unk_token_id(0)
            writer.add_add_bos_token(True)
            writer.add_add_eos_token(False)

    return add


def write_quants(path: Path) -> list[dict]:
    """A file with one tensor `[1, 256]` of every type, and what each dequantises to.

    gguf-py cannot quantise K types; random bytes under sane scales are as good to dequantise.
    """
    writer = gguf.GGUFWriter(path, "quants")
    values = []
    for kind in QUANTS:
        rng = np.random.default_rng([0, kind.value])
        if kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
            _, size = gguf.GGML_QUANT_SIZES[kind]
            data = rng.integers(0, 256, (1, size), dtype=np.uint8)
            scales = rng.uniform(0.001, 0.02, (1, 2)).astype(np.float16).view(np.uint8)
            # Q6_K ends with its one scale; the others begin with a scale and a minimum.
            if kind == Type.Q6_K:
                data[:, -2:] = scales[:, :2]
            else:
                data[:, :4] = scales
        else:
            source = rng.standard_normal((1, 256)).astype(np.float32)
            data = gguf.quants.quantize(source, kind)
        f32 = np.array(gguf.quants.dequantize(data, kind), dtype=np.float32).reshape(1, 256)
        writer.add_tensor(kind.name.lower(), data, raw_dtype=kind)
        values.append({"name": kind.name.lower(), "type": kind.name, "shape": [1, 256], "f32": f32})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
