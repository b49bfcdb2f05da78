"""Records fixtures/: tiny random models, and what Hugging Face transformers answers with them.

    python scripts/golden.py            writes fixtures/
    python scripts/golden.py --check    records again and compares with what is there

Needs scripts/requirements.txt. Weights are used as stored (bf16, f16, quantised) and computed with in
f32. Texts are greedy, without a cache: transformers 5.23 sizes T5's cache by its encoder's depth.
A prompt is kept only if every pick of its text leads the runner-up clearly, so that equal tokens mean
equal arithmetic and not luck, and if the text is not one token over and over.
"""

import argparse
import base64
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import transformers

import golden_gguf
import golden_tokenizers
from golden_models import FIXTURES, Fixture, weights

ROOT = Path(__file__).resolve().parent.parent / "fixtures"
LENGTHS = [1, 2, 5, 9, 17, 33, 40]
TEXTS = [
    "The clover has three leaves.",
    "Where does the road lead?",
    "def add(a, b):",
    "two  spaces, and 12 digits",
    "Grüße from 北京 🍀",
    "Once more:",
]
NEW_TOKENS = {False: 48, True: 80}
BY = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, f32, greedy, no cache"


class Reference:
    """A model of transformers, in f32, asked one whole sequence at a time."""

    def __init__(self, folder: Path, fixture: Fixture):
        kind = transformers.AutoModelForSeq2SeqLM if fixture.seq2seq else transformers.AutoModelForCausalLM
        self.model, info = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        held = self.model.state_dict()
        # Transformers ties heads by rules of its own; a golden is one only if every weight is the stored one.
        stored = [item for file in folder.glob("*.safetensors") for item in safetensors.torch.load_file(file).items()]
        wrong = [n for n, t in stored if n not in fixture.stray and not torch.equal(held[n], t.float())]
        if wrong or info["missing_keys"]:
            raise ValueError(f"{fixture.name}: not loaded as stored: {wrong}, {info}")
        self.model.eval()
        self.seq2seq = fixture.seq2seq
        self.start = [fixture.config["decoder_start_token_id"]] if fixture.seq2seq else []

    @torch.no_grad()
    def logits(self, prompt: list[int], written: list[int]) -> torch.Tensor:
        """`[positions, vocab]`: of prompt and text, or of the decoder's start and text."""
        if not self.seq2seq:
            return self.model(torch.tensor([prompt + written]), use_cache=False).logits[0]
        decoder = torch.tensor([self.start + written])
        return self.model(torch.tensor([prompt]), decoder_input_ids=decoder, use_cache=False).logits[0]

    def greedy(self, prompt: list[int], count: int) -> tuple[list[int], float]:
        """The text and its smallest lead."""
        written, gap = [], float("inf")
        for _ in range(count):
            best, ids = self.logits(prompt, written)[-1].topk(2)
            gap = min(gap, (best[0] - best[1]).item())
            written.append(ids[0].item())
        return written, gap

    def cached(self, prompt: list[int], count: int) -> list[int]:
        """The same text by `generate`, with a cache: a causal model must not differ."""
        out = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].tolist()


def write_model(folder: Path, fixture: Fixture, tensors: dict[str, torch.Tensor]) -> None:
    """config.json, generation_config.json and the weights, in one file or in shards with an index."""
    folder.mkdir(parents=True)
    config = fixture.config
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    keys = ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"]
    generation = {key: config[key] for key in keys if key in config}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n")
    if fixture.shards == 1:
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": {}}
    for i in range(fixture.shards):
        file = f"model-{i + 1:05}-of-{fixture.shards:05}.safetensors"
        part = names[i * len(names) // fixture.shards : (i + 1) * len(names) // fixture.shards]
        safetensors.torch.save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def ends(fixture: Fixture) -> set[int]:
    """Tokens that no text may contain: the end, and what a tokenizer would drop."""
    eos = fixture.config["eos_token_id"]
    return set(eos if isinstance(eos, list) else [eos]) | {0, 1, 2}


def record(reference: Reference, fixture: Fixture, tokenizer) -> list[dict]:
    """One case a length, and one a text where the fixture has a tokenizer."""
    count = fixture.tokens or NEW_TOKENS[fixture.seq2seq]
    vocab = fixture.config["vocab_size"]
    rng = np.random.default_rng([fixture.seed, 0])
    cases = []
    for length in LENGTHS:
        for _ in range(2000):
            prompt = rng.integers(3, vocab, length).tolist()
            if case := attempt(reference, fixture, prompt, count):
                cases.append(case)
                break
        else:
            raise ValueError(f"{fixture.name}: no prompt of {length} tokens has a clear text; try another seed")
    if tokenizer:
        for text in TEXTS:
            case = attempt(reference, fixture, tokenizer.encode(text).ids, count)
            if case:
                output = tokenizer.decode(case["tokens"], skip_special_tokens=True)
                cases.append({"text": text} | case | {"output": output})
    for case in cases[2], cases[len(LENGTHS) - 1]:
        add_logits(reference, case, fixture)
    return cases


def attempt(reference: Reference, fixture: Fixture, prompt: list[int], count: int) -> dict | None:
    tokens, gap = reference.greedy(prompt, count)
    pairs = set(zip(tokens, tokens[1:]))
    if gap < fixture.gap or ends(fixture) & set(tokens) or len(pairs) < min(16, count // 2):
        return None
    return {"prompt": prompt, "tokens": tokens, "gap": float(f"{gap:.4g}")}


def add_logits(reference: Reference, case: dict, fixture: Fixture) -> None:
    """The logits of a few positions, counted from the first prompt token or the decoder's start."""
    written = case["tokens"]
    rows = reference.logits(case["prompt"], written)
    first = 0 if fixture.seq2seq else len(case["prompt"]) - 1
    positions = sorted({0, first, first + 7, first + len(written) - 1})
    data = rows[positions].numpy().astype("<f4").tobytes()
    case["logits"] = {"positions": positions, "f32": base64.b64encode(data).decode()}


def write_golden(folder: Path, golden: dict) -> None:
    """One line a case, so that a change reads well."""
    lines = []
    for key, value in golden.items():
        if isinstance(value, list):
            rows = ",\n".join(f"    {json.dumps(v, ensure_ascii=False)}" for v in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    (folder / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def assert_matters(folder: Path, fixture: Fixture, cases: list[dict]) -> None:
    """Each key named must change a text when it is replaced; otherwise no text tests it."""
    for key, value in fixture.matters.items():
        with tempfile.TemporaryDirectory() as other:
            shutil.copytree(folder, other, dirs_exist_ok=True)
            changed = fixture.config | {key: value}
            Path(other, "config.json").write_text(json.dumps(changed))
            twin = Reference(Path(other), replace(fixture, config=changed))
            if all(twin.greedy(c["prompt"], len(c["tokens"]))[0] == c["tokens"] for c in cases[-3:]):
                raise ValueError(f"{fixture.name}: no text depends on {key}")


def build(root: Path, fixture: Fixture) -> None:
    """Writes one fixture, and its GGUF twin where it has one."""
    folder = root / fixture.name
    tensors = weights(fixture)
    write_model(folder, fixture, tensors)
    vocab = fixture.config["vocab_size"]
    tokenizer, vocabulary, extra = None, golden_gguf.letters_vocabulary(vocab), {}
    if fixture.tokenizer == "bytes":
        tokenizer = golden_tokenizers.byte_level(vocab)
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        vocabulary = golden_gguf.bytes_vocabulary(tokenizer, merges)
    elif fixture.tokenizer == "unigram":
        proto = golden_tokenizers.unigram(vocab)
        tokenizer = golden_tokenizers.unigram_json(proto)
        vocabulary = golden_gguf.sentencepiece_vocabulary(proto, "t5")
    if tokenizer:
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        (folder / "tokenizer_config.json").write_text(golden_tokenizers.tokenizer_config(fixture.tokenizer))
        extra = {"encodings": golden_tokenizers.encodings(tokenizer)}
    reference = Reference(folder, fixture)
    cases = record(reference, fixture, tokenizer)
    if not fixture.seq2seq and any(reference.cached(c["prompt"], len(c["tokens"])) != c["tokens"] for c in cases):
        raise ValueError(f"{fixture.name}: transformers' cache changes the text")
    assert_matters(folder, fixture, cases)
    write_golden(folder, {"by": BY, "cases": cases} | extra)
    report(folder, cases)
    if fixture.gguf:
        kept = {name: t for name, t in tensors.items() if name not in fixture.stray}
        build_gguf(root, fixture, kept, vocabulary, tokenizer, extra)


def build_gguf(root: Path, fixture: Fixture, tensors, vocabulary, tokenizer, extra: dict) -> None:
    """The twin's texts are those of its own weights: where they are quantised they differ."""
    folder = root / f"{fixture.name}-gguf"
    folder.mkdir()
    seen = golden_gguf.write(folder / "model.gguf", fixture, tensors, vocabulary)
    # An engine may quantise activations too; only a wide lead survives that, and only for a few tokens.
    twin = replace(fixture, gap=0.8, tokens=8) if fixture.gguf == "Q8_0" else fixture
    with tempfile.TemporaryDirectory() as other:
        write_model(Path(other, "m"), replace(twin, dtype=torch.float32, shards=1), seen)
        cases = record(Reference(Path(other, "m"), twin), twin, tokenizer)
    write_golden(folder, {"by": f"{BY}, weights {fixture.gguf}", "cases": cases} | extra)
    report(folder, cases)


def build_llama_gguf(root: Path) -> None:
    """One layer under a SentencePiece BPE vocabulary, as Llama 2's and Mistral's files have it."""
    base = next(f for f in FIXTURES if f.name == "llama-linear")
    config = {k: v for k, v in base.config.items() if not k.startswith("rope")}
    config |= {"intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 400}
    fixture = replace(base, name="llama-spm", config=config, seed=12, gguf="Q8_0")
    proto = golden_tokenizers.spm(config["vocab_size"])
    processor = golden_tokenizers.processor(proto)
    samples = [t for t in golden_tokenizers.SAMPLES if "<" not in t]
    found = [(t, processor.encode(t)) for t in samples]
    encodings = [{"text": t, "ids": [1, *ids], "decoded": processor.decode(ids)} for t, ids in found]
    vocabulary = golden_gguf.sentencepiece_vocabulary(proto, "llama")
    build_gguf(root, fixture, weights(fixture), vocabulary, None, {"encodings": encodings})


def build_quants(root: Path) -> None:
    folder = root / "quants"
    folder.mkdir()
    tensors = golden_gguf.write_quants(folder / "quants.gguf")
    for tensor in tensors:
        tensor["f32"] = base64.b64encode(tensor["f32"].astype("<f4").tobytes()).decode()
    write_golden(folder, {"by": "gguf-py 0.19.0", "tensors": tensors})


def report(folder: Path, cases: list[dict]) -> None:
    varied = min(len(set(c["tokens"])) for c in cases)
    gap = min(c["gap"] for c in cases)
    print(f"{folder.name:14} {len(cases):2} cases, least gap {gap:.4f}, at least {varied} different tokens a text")


def same(a: Path, b: Path) -> bool:
    """Files by their bytes; goldens by their tokens, and logits to 1e-4."""
    if a.name != "golden.json" or a.parent.name == "quants":
        return a.read_bytes() == b.read_bytes()
    x, y = json.loads(a.read_text()), json.loads(b.read_text())
    for p, q in zip(x["cases"], y["cases"]):
        p.pop("gap"), q.pop("gap")
        m, n = (np.frombuffer(base64.b64decode(c.pop("logits", {}).get("f32", "")), "<f4") for c in (p, q))
        if m.shape != n.shape or not np.allclose(m, n, rtol=1e-4, atol=1e-4):
            return False
    return x == y


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with fixtures/ instead of writing it")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for fixture in FIXTURES:
            build(root, fixture)
        build_llama_gguf(root)
        build_quants(root)
        files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
        if check:
            wrong = [f for f in files if not (ROOT / f).is_file() or not same(root / f, ROOT / f)]
            print("\n".join(f"differs: {f}" for f in wrong) or f"{len(files)} files are as recorded")
            return 1 if wrong else 0
        for folder in sorted(p for p in root.iterdir()):
            shutil.rmtree(ROOT / folder.name, ignore_errors=True)
            shutil.copytree(folder, ROOT / folder.name)
        print(f"{len(files)} files, {sum((ROOT / f).stat().st_size for f in files)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
