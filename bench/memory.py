"""What settings that save memory save: peak memory of a step with layers recomputed, and of a teacher in fewer bits.

    python bench/memory.py step                    one optimiser step of a random LLaMA, with and without
    python bench/memory.py teacher --model FOLDER  a teacher as it is held, against itself in float32

Each subject has a process of its own, since a peak is a process's; figures are above what the process had before.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

KINDS = ("none", "bfloat16", "int8", "int8_dynamic", "llm_int8", "nf4")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_step(recompute: bool, layers: int, width: int, length: int, rows: int) -> None:
    """Print MiB above the model, its gradients included, and processor seconds."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from potstill import objectives
    from potstill.models.families import family_of
    from potstill.objectives.chunked import BoundTerm, evaluate_terms
    from potstill.training.recompute import recomputing
    from potstill.training.trainer import training
    from potstill.types import Batch

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=8, max_position_embeddings=length + 8,
    )  # fmt: skip
    family = family_of(LlamaForCausalLM(config))
    ids, mask = torch.randint(0, 4096, (rows, length)), torch.ones(rows, length, dtype=torch.bool)
    names = tuple(map(str, range(rows)))
    batch = Batch(ids[:, :8], mask[:, :8], ids[:, 8:], mask[:, 8:], names)
    scale = batch.response_mask.float() / batch.num_response_tokens
    term = BoundTerm("ce", objectives.cross_entropy, "tokens", 1.0, scale)
    before, begun = peak_mib(), time.process_time()
    with training(family), recomputing(family, wanted=recompute):
        total, _ = evaluate_terms(family.output(batch), None, batch, [term])
        total.backward()
    norm = sum(float(p.grad.double().square().sum()) for p in family.parameters() if p.grad is not None) ** 0.5
    print(f"{peak_mib() - before:.1f} {time.process_time() - begun:.2f} {float(total):.17g} {norm:.17g}")


def held(model: str, kind: str, tokens: int) -> None:
    """Print MiB of the weights, forward KL of it from float32 in nats, and the share of equal likeliest tokens."""
    from potstill.data.collate import collate
    from potstill.data.examples import Tokenised
    from potstill.evaluation.evaluator import measure
    from potstill.models.families import family_of
    from potstill.models.held import bytes_held, load_held
    from potstill.recipe import Holding
    from potstill.sampling.distributions import Decoding
    from potstill.sampling.policies import Single
    from potstill.sampling.writer import LocalWriter
    from potstill.teachers.local import LocalTeacher

    cpu: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    setting = Holding(dtype="bfloat16") if kind == "bfloat16" else Holding(quantise=kind)
    loaded = load_held(model, Holding(), **cpu)
    full = family_of(loaded.model)
    texts = ("Once upon a time", "The capital of France is", "Water boils when", "Write a story about a goat.")
    prompts = [tuple(loaded.tokenizer.encode(text)) for text in texts]
    end = loaded.tokenizer.eos_token_id
    decoding = Decoding(max_new_tokens=tokens, stop_ids=frozenset({end}))
    said = LocalWriter(Single(), [full], decoding, slots=4).write(prompts, seeds=range(len(prompts)))
    pairs = enumerate(zip(prompts, said, strict=True))
    rows = [Tokenised(f"row:{at}", prompt, own.ids, "", "", truncated=False) for at, (prompt, own) in pairs]
    family = family_of(load_held(model, setting, **cpu).model)
    found = measure(family, LocalTeacher(full), [collate(rows, end)])
    figures = (bytes_held(family.model) / 2**20, found["forward_kl_nats"], found["top1_agreement"], found["num_tokens"])
    print(" ".join(f"{figure:.5g}" for figure in figures))


def told(*arguments: str) -> str:
    """What this file prints in a process of its own."""
    command = [sys.executable, str(Path(__file__)), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("step", "teacher"))
    parser.add_argument("--only", help="one subject, in this process")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=64, help="written by the teacher to each of four prompts")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=2)
    given = parser.parse_args()
    sizes = (given.layers, given.width, given.length, given.rows)
    if given.only and given.what == "step":
        return one_step(given.only == "recomputed", *sizes)
    if given.only:
        return held(given.model, given.only, given.tokens)
    if given.what == "step":
        print("subject      MiB  processor s  loss  gradient norm")
        passed = [f"--{name}={size}" for name, size in zip(("layers", "width", "length", "rows"), sizes, strict=True)]
        for subject in ("kept", "recomputed"):
            print(f"{subject:11}", told("step", "--only", subject, *passed), flush=True)
        return None
    print("held as       MiB  forward KL, nats  likeliest token the same  tokens")
    for kind in KINDS:
        print(
            f"{kind:12}",
            told("teacher", "--only", kind, f"--model={given.model}", f"--tokens={given.tokens}"),
            flush=True,
        )
    return None


if __name__ == "__main__":
    main()
