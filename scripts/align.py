"""Aligns a little encoder-decoder model with a large one: it learns the large model's own texts.

    node scripts/distil.mjs models/de-en/large train.jsonl.gz texts.jsonl
    python scripts/align.py models/de-en/large models/de-en/small texts.jsonl OUT [--golden models/de-en/small/golden.jsonl]

What BiLD wants of its little model is not good texts but the large model's next token. The large model's texts are its
most likely tokens, so cross-entropy on them is the distance that counts. One text in a hundred is held back; the share of
its tokens that the little model finds, given those before, is printed before training and after each epoch. OUT gets the
model in bf16, with the tokenizer, and, for the sources of another model's golden.jsonl, greedy answers of its own.

Minutes on two cores for the embedded pair. Seeded, but float sums differ between machines, and so do the last digits.
"""

import argparse
import copy
import json
import math
import random
import shutil
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, T5ForConditionalGeneration

END = 1
HELD = 100
LONGEST_SOURCE = 96
LONGEST_GOLDEN = 64


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("large", type=Path)
    parser.add_argument("little", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=200, help="steps until the full rate")
    parser.add_argument("--smoothing", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--golden", type=Path, help="a golden.jsonl whose sources are answered at the end")
    return parser.parse_args()


def padded(rows: list[list[int]], value: int = 0) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def batches(items: list, size: int, draw: random.Random) -> list[list]:
    """All items in random batches of like length."""
    order = sorted(items, key=lambda item: len(item[0]) + len(item[1]) + 4 * draw.random())
    groups = [order[at : at + size] for at in range(0, len(order), size)]
    draw.shuffle(groups)
    return groups


def scores(model: T5ForConditionalGeneration, group: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of every token of the texts, given the tokens before it."""
    source, target = padded([source for source, _ in group]), padded([text for _, text in group])
    seen = padded([[1] * len(source) for source, _ in group])
    kept = padded([[1] * len(text) for _, text in group]).bool()
    start = torch.full((len(group), 1), model.config.decoder_start_token_id)
    before = torch.cat([start, target[:, :-1]], dim=1)
    logits = model(input_ids=source, attention_mask=seen, decoder_input_ids=before).logits
    return logits[kept], target[kept]


@torch.inference_mode()
def agreement(model: T5ForConditionalGeneration, items: list) -> float:
    model.eval()
    hits = total = 0
    for at in range(0, len(items), 256):
        logits, target = scores(model, items[at : at + 256])
        hits += (logits.argmax(-1) == target).sum().item()
        total += len(target)
    model.train()
    return hits / total


@torch.inference_mode()
def record(model: T5ForConditionalGeneration, tokenizer, sources: list[str], path: Path) -> None:
    """Greedy answers, one at a time."""
    model.eval()
    with path.open("w") as out:
        for source in sources:
            ids = torch.tensor([tokenizer(source).input_ids])
            tokens = model.generate(ids, max_new_tokens=LONGEST_GOLDEN, do_sample=False, num_beams=1)[0, 1:].tolist()
            tokens = tokens[: tokens.index(END)] if END in tokens else tokens
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            out.write(json.dumps({"de": source, "tokens": tokens, "text": text}, ensure_ascii=False) + "\n")


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    draw = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(options.large)
    with options.texts.open() as lines:
        texts = [json.loads(line) for line in lines]
    sources = tokenizer([text["source"] for text in texts]).input_ids
    items = [(source[:LONGEST_SOURCE], text["tokens"] + [END]) for source, text in zip(sources, texts)]
    held, items = items[::HELD], [item for at, item in enumerate(items) if at % HELD]

    model = T5ForConditionalGeneration.from_pretrained(options.little, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    print(f"agreement before: {agreement(model, held):.4f}", flush=True)

    steps = options.epochs * math.ceil(len(items) / options.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / options.warmup) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps))),
    )
    begin = time.time()
    for epoch in range(options.epochs):
        for group in batches(items, options.batch, draw):
            loss = cross_entropy(*scores(model, group), label_smoothing=options.smoothing)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
        found = agreement(model, held)
        print(f"epoch {epoch + 1}: agreement {found:.4f}, {time.time() - begin:.0f} s", flush=True)

    kept = copy.deepcopy(model).to(torch.bfloat16)
    kept.save_pretrained(options.out)
    shutil.copy(options.little / "tokenizer.json", options.out)
    if options.golden:
        with options.golden.open() as lines:
            asked = [json.loads(line)["de"] for line in lines]
        record(kept.float(), tokenizer, asked, options.out / "golden.jsonl")


if __name__ == "__main__":
    main()
