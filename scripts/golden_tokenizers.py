"""The fixtures' three tokenizers, each trained on the few sentences below.

* `bytes`: byte-level BPE, as GPT-2's descendants have it, with every byte and a chat template
* `unigram`: SentencePiece unigram as T5 has it, with a character map of a few rules
* `spm`: SentencePiece BPE with byte fallback, as Llama 2 has it (GGUF only)
"""

import io
import json
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "A clover has three leaves and one stem.",
    "The trefoil grows in the meadow behind the old stone wall.",
    "Write the first line, then the second line, and then read both of them again.",
    "She asked whether the answer was the same, and it was the same.",
    "Three small rivers meet below the bridge and become one large river.",
    "It is better to measure twice and to cut once.",
    "When the rain stops, the bees return to the white clover.",
    "He counted the tokens: one, two, three, four, five, six, seven.",
    "In the morning the baker opens the door and the street smells of bread.",
    "What is written faster is not written differently.",
    "The little model writes a draft; the large model reads it and keeps what it would have written.",
    "Where does the road lead? It leads over the hill and down to the sea.",
    "There are 12 months, 52 weeks and 365 days in a year; 2024 had 366.",
    "The children were singing, running and laughing in the garden.",
    "Nothing is lost when a wrong guess is thrown away.",
    "A teacher explains; a student listens, asks and tries again.",
    "Every branch of the tree has its own leaves.",
    "def add(a, b):\n    return a + b\n",
    "for i in range(10):\n    print(i, i * i)\n",
    'let text = "hello, world";',
    "The weather tomorrow: rain in the north, sun in the south.",
    "Please translate this sentence, and then the next one.",
]

# Texts whose encodings the fixtures record: spaces, digits, other scripts, what no vocabulary knows.
SAMPLES = [
    "The clover has three leaves.",
    " a leading space",
    "two  spaces,   three spaces",
    "trailing space ",
    "12345 and 6.78",
    "def f(x):\n    return x\n\n\n",
    "tabs\tand\r\nline ends",
    "Grüße, naïve façade — “quoted”",
    "ﬁne ﬂour, Ａ full width letter",
    "你好，世界",
    "👩‍👩‍👧 and 🍀",
    "e\u0301 is not é",
    "don't, we'll, I'M",
    "",
    " ",
    "the</s>end<|im_end|>",
]

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level(vocab_size: int) -> Tokenizer:
    """Byte-level BPE: special tokens first, then the 256 bytes, then merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True) for t in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    return tokenizer


def train_sentencepiece(**options) -> sentencepiece_model_pb2.ModelProto:
    """Trains a SentencePiece model on the corpus, without leaving a file."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, num_threads=1, minloglevel=2, **options
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(out.getvalue())
    return proto


def unigram(vocab_size: int) -> sentencepiece_model_pb2.ModelProto:
    """T5's kind: pad, end and unknown first; a few of NFKC's rules instead of all 240 kB of them."""
    rules = {"ﬁ": "fi", "ﬂ": "fl", "Ａ": "A", "\u00a0": " ", "\t": " ", "\n": " ", "\r": "", "e\u0301": "é", "，": ","}
    with tempfile.TemporaryDirectory() as folder:
        tsv = Path(folder, "rules.tsv")
        hexes = lambda text: " ".join(f"{ord(c):X}" for c in text)
        tsv.write_text("".join(f"{hexes(a)}\t{hexes(b)}\n" for a, b in rules.items()))
        return train_sentencepiece(
            model_type="unigram",
            vocab_size=vocab_size,
            normalization_rule_tsv=str(tsv),
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
        )


def unigram_json(proto: sentencepiece_model_pb2.ModelProto) -> Tokenizer:
    """The same model as tokenizer.json, built the way transformers converts T5's."""
    tokenizer = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ["<pad>", "</s>", "<unk>"]])
    return tokenizer


def spm(vocab_size: int) -> sentencepiece_model_pb2.ModelProto:
    """Llama 2's kind: unknown, start, end, 256 bytes, merges; digits apart; text not normalised."""
    return train_sentencepiece(
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )


def processor(proto: sentencepiece_model_pb2.ModelProto) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def tokenizer_config(kind: str) -> str:
    """tokenizer_config.json, the fields that matter."""
    if kind == "bytes":
        config = {
            "add_prefix_space": False,
            "bos_token": "<|im_start|>",
            "chat_template": CHAT_TEMPLATE,
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": "<|endoftext|>",
        }
    else:
        config = {"eos_token": "</s>", "pad_token": "<pad>", "tokenizer_class": "T5Tokenizer", "unk_token": "<unk>"}
    return json.dumps(config, indent=2) + "\n"


def encodings(tokenizer: Tokenizer) -> list[dict]:
    """Each sample with special tokens as `generate` uses it, and what its tokens read as."""
    found = []
    for text in SAMPLES:
        ids = tokenizer.encode(text).ids
        found.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)})
    return found
