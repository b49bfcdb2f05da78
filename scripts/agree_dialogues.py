"""Does Trefoil fill slots as transformers does, one prompt at a time?

    TREFOIL_DATA=folder npm run eval -- multiwoz --turns 500 --answers answers.jsonl
    python scripts/agree_dialogues.py models/dst answers.jsonl [--turns N]

Every document is encoded once by transformers, in f32, and every prompt is continued greedily by itself. Prints how
many answers are the same, and for each that is not how far the two tokens' logits lie apart where they part: a lead
near rounding is no mistake.
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import T5ForConditionalGeneration

MAX_TOKENS = 16


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--turns", type=int, help="compare only the first so many")
    return parser.parse_args()


def lead(model: T5ForConditionalGeneration, encoded, start: list[int], mine: list[int], theirs: list[int]) -> float:
    """How far transformers' token leads the other one where two answers part."""
    end = model.config.eos_token_id
    mine, theirs = [*mine, end], [*theirs, end]
    at = next(i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b)
    ids = torch.tensor([start + theirs[:at]])
    logits = model(encoder_outputs=encoded, decoder_input_ids=ids).logits[0, -1]
    return (logits[theirs[at]] - logits[mine[at]]).item()


@torch.inference_mode()
def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    model = T5ForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    lines = args.answers.read_text().splitlines()[: args.turns]
    same, total = 0, 0
    for number, line in enumerate(lines, 1):
        turn = json.loads(line)
        source = torch.tensor([tokenizer.encode(turn["document"]).ids])
        encoded = model.get_encoder()(source)
        for prompt, mine in zip(turn["prompts"], turn["answers"]):
            start = [model.config.decoder_start_token_id, *tokenizer.encode(prompt, add_special_tokens=False).ids]
            ids = torch.tensor([start])
            output = model.generate(encoder_outputs=encoded, decoder_input_ids=ids, max_new_tokens=MAX_TOKENS, do_sample=False)
            theirs = output[0, len(start) :].tolist()
            if theirs and theirs[-1] == model.config.eos_token_id:
                theirs.pop()
            total += 1
            same += mine == theirs
            if mine != theirs:
                print(f"turn {number}, {prompt!r}: {mine} against {theirs}, lead {lead(model, encoded, start, mine, theirs):.2e}")
        if number % 50 == 0:
            print(f"{number} turns: {same} of {total} answers are the same", flush=True)
    print(f"{same} of {total} answers are the same: {100 * same / total:.3f}%")


if __name__ == "__main__":
    main()
