"""Adds to fixtures/agree.json what the models write when nothing is rounded.

    python scripts/agree.py FOLDER [MODEL...]

FOLDER holds the models' GGUF files, as the cache folder does. Needs scripts/requirements.txt. Weights are dequantised by
transformers and computed with in f32, without rounding of activations or of the cache: this is what any engine that
reads the file approximates. Beside each text of the other engine, whose tokens and leads scripts/agree.mjs records,
`exact` is the model's own, greedy, of as many tokens.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

RECORD = Path(__file__).resolve().parent.parent / "fixtures" / "agree.json"
FILES = {
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen2.5-coder-0.5b": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "qwen2.5-coder-1.5b": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
}
TOKENS = 32


def write(record: dict) -> None:
    """Writes the record as scripts/agree.mjs does, a case a line."""
    lines = [f'  "by": {json.dumps(record["by"])}']
    for name in FILES:
        cases = ",\n".join(
            "    " + json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in record[name]
        )
        lines.append(f"  {json.dumps(name)}: [\n{cases}\n  ]")
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(folder: str, *names: str) -> None:
    record = json.loads(RECORD.read_text())
    for name in names or FILES:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=FILES[name], dtype=torch.float32
        ).eval()
        for case in record[name]:
            ids = torch.tensor([case["ids"]])
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=transformers.GenerationConfig(
                        max_new_tokens=TOKENS, do_sample=False, eos_token_id=model.config.eos_token_id
                    ),
                )
            tokens = out[0, ids.shape[1] :].tolist()
            # The end is not written down.
            case["exact"] = tokens[:-1] if tokens[-1] == model.config.eos_token_id else tokens
            print(name, case["exact"] == case["tokens"], flush=True)
        write(record)


if __name__ == "__main__":
    main(*sys.argv[1:])
