"""What BiLD writes on the embedded pair, by Algorithm 1 over the probabilities that transformers gives.

    python scripts/golden_bild.py                                    records models/de-en/bild.json
    python scripts/golden_bild.py --sentences FILE --count 500 --out FILE

Nothing here is shared with the engine: no cache, no draft, no step, another framework. The sentences are those of
`models/de-en/large/golden.jsonl`, or the `de` of a JSONL file. Recorded for every setting and sentence: the tokens, the
calls of the large and of the little model, fallbacks and rollbacks; and how near any decision came to its threshold,
since a decision nearer than rounding says nothing.
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import T5ForConditionalGeneration

MODELS = Path(__file__).parent.parent / "models" / "de-en"
MAX_TOKENS = 64
INFINITY = float("inf")

# Fallback, rollback (none: the exact rule, whose fallback is the engine's own), longest chain, whether the tail is verified.
SETTINGS = [
    (0.6, 3.0, 7, True),
    (0.4, 2.0, 10, True),
    (0.9, 5.0, 4, True),
    (0.5, 1.0, 7, False),
    (0.0, 2.0, 3, True),
    (0.8, INFINITY, 10, True),
    (0.3, None, 5, True),
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, default=MODELS / "large" / "golden.jsonl")
    parser.add_argument("--count", type=int, help="only the first so many")
    parser.add_argument("--out", type=Path, default=MODELS / "bild.json")
    return parser.parse_args()


class Recorded:
    """A model's log-probabilities of the next token after each text about one source, recorded when first asked for."""

    def __init__(self, model: T5ForConditionalGeneration, source: list[int]):
        self.model, self.rows = model, {}
        self.encoded = model.get_encoder()(torch.tensor([source]))

    def after(self, text: list[int]) -> torch.Tensor:
        key = tuple(text)
        if key not in self.rows:
            ids = torch.tensor([[self.model.config.decoder_start_token_id, *text]])
            logits = self.model(encoder_outputs=self.encoded, decoder_input_ids=ids, use_cache=False).logits[0]
            # Rows of a decoder see what is before them: one pass records every beginning of the text.
            for length, row in enumerate(logits.double().log_softmax(-1)):
                self.rows.setdefault(key[:length], row)
        return self.rows[key]


class Account:
    """One text by Algorithm 1, and what it took."""

    def __init__(self, large: Recorded, little: Recorded, end: int, setting: tuple):
        self.large, self.little, self.end, self.setting = large, little, end, setting
        self.large_calls = self.little_calls = self.fallbacks = self.rollbacks = 0
        self.text: list[int] = []
        self.margin = INFINITY
        while len(self.text) < MAX_TOKENS and self.end not in self.text:
            self.round()
        if self.end in self.text:
            self.text = self.text[: self.text.index(self.end)]

    def near(self, distance: float) -> None:
        self.margin = min(self.margin, abs(distance))

    def best(self, model: Recorded, text: list[int]) -> int:
        values, tokens = model.after(text).topk(2)
        self.near((values[0] - values[1]).item())
        return tokens[0].item()

    def chain(self) -> tuple[list[int], bool]:
        """The little model's tokens until it is unsure, ends the text, or has written enough."""
        fallback, _, longest, _ = self.setting
        chain: list[int] = []
        while len(chain) < longest and len(self.text) + len(chain) < MAX_TOKENS and self.end not in chain:
            so_far = self.text + chain
            sure = self.little.after(so_far).max().exp().item()
            self.little_calls += 1
            self.near(sure - fallback)
            if sure < fallback:
                self.fallbacks += 1
                return chain, True
            chain.append(self.best(self.little, so_far))
        return chain, False

    def offends(self, text: list[int], token: int) -> bool:
        rollback = self.setting[1]
        if token == self.best(self.large, text):
            return False
        if rollback is None:
            return True
        surprise = -self.large.after(text)[token].item()
        if rollback < INFINITY:
            self.near(surprise - rollback)
        return surprise > rollback

    def round(self) -> None:
        _, rollback, longest, verify_tail = self.setting
        chain, unsure = self.chain()
        if self.end in chain and not verify_tail:
            self.text += chain
            return
        self.large_calls += 1
        for token in chain:
            if self.offends(self.text, token):
                self.rollbacks += 1
                self.text.append(self.best(self.large, self.text))
                return
            self.text.append(token)
        # The large model takes over where the little one is unsure. Under the exact rule it adds its own token to a
        # full chain too.
        full = rollback is None and len(chain) == longest and self.end not in chain
        if (unsure or full) and len(self.text) < MAX_TOKENS:
            self.text.append(self.best(self.large, self.text))


def options(setting: tuple) -> dict:
    """The setting as `generate` takes it; JSON has no infinity, which is `null` here."""
    fallback, rollback, longest, verify_tail = setting
    if rollback is None:
        return {"type": "speculative", "fallback": fallback, "cumulative": False, "candidates": 1, "maxDraft": longest}
    kept = rollback if rollback < INFINITY else None
    return {"type": "bild", "fallback": fallback, "rollback": kept, "maxDraft": longest, "verifyTail": verify_tail}


@torch.inference_mode()
def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    load = lambda name: T5ForConditionalGeneration.from_pretrained(MODELS / name, dtype=torch.float32).eval()
    models = {name: load(name) for name in ("large", "small", "aligned")}
    tokenizer = Tokenizer.from_file(str(MODELS / "large" / "tokenizer.json"))
    end = models["large"].config.eos_token_id
    lines = args.sentences.read_text().splitlines()[: args.count]
    pairs = {name: [] for name in ("small", "aligned")}
    margins = []
    for number, line in enumerate(lines, 1):
        de = json.loads(line)["de"]
        source = tokenizer.encode(de).ids
        large = Recorded(models["large"], source)
        for name, cases in pairs.items():
            little = Recorded(models[name], source)
            accounts = [Account(large, little, end, setting) for setting in SETTINGS]
            margins += [account.margin for account in accounts]
            texts = [
                [account.text, account.large_calls, account.little_calls, account.fallbacks, account.rollbacks]
                for account in accounts
            ]
            cases.append({"de": de, "texts": texts})
        if number % 50 == 0:
            print(f"{number} sentences", flush=True)
    recorded = {"decodings": [options(setting) for setting in SETTINGS], "maxTokens": MAX_TOKENS, **pairs}
    body = json.dumps(recorded, ensure_ascii=False, separators=(",", ":")).replace('{"de"', '\n{"de"')
    args.out.write_text(body + "\n")
    print(f"{len(margins)} texts; the nearest decision is {min(margins):.1e} from its threshold")


if __name__ == "__main__":
    main()
