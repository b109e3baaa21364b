"""Tokens a second of the sampler against transformers' generate: equal lengths, and ragged ones.

    python bench/sampler.py --model FOLDER --layers 6 [--dtype bfloat16] [--repeats 3]

A student of the model's first layers, sampling at temperature 1; one thread, processor seconds, in turns in one
process, medians. ``equal``: 8 prompts of 64 tokens, 64 new ones each. ``ragged``: 32 prompts whose responses are 4 to
112 tokens long (mean 28), 8 slots, against static batches of 8 that run to the longest and against transformers'
continuous batching with 8 requests at a time; lengths are forced by cutting, so all sides write the same number of
useful tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from potstill.models.decoding import CausalDecoder
from potstill.models.families import Causal
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Single
from potstill.sampling.sampler import sample

SLOTS = 8


def student(folder: str, layers: int, dtype: torch.dtype) -> Causal:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.model.layers = nn.ModuleList(list(model.model.layers)[:layers])
    model.config.num_hidden_layers = layers
    return Causal(model)


def prompts(count: int, length: int) -> list[list[int]]:
    ids = torch.randint(10, 40_000, (count, length), generator=torch.Generator().manual_seed(0))
    return ids.tolist()


def ragged_lengths(count: int = 32) -> list[int]:
    """4 to 112, mean 28, as log-normal lengths are."""
    drawn = torch.empty(count).log_normal_(3.0, 0.8, generator=torch.Generator().manual_seed(3)).clamp(4, 112)
    drawn[0] = 112
    scale = (28 * count - 112) / drawn[1:].sum()
    return [112, *(drawn[1:] * scale).round().clamp(4, 112).int().tolist()]


def generate(family: Causal, rows: Sequence[Sequence[int]], new_tokens: int) -> Any:
    family.model.generation_config = GenerationConfig(
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=True, temperature=1.0, top_k=0, pad_token_id=0
    )
    return family.model.generate(
        torch.tensor(rows), attention_mask=torch.ones(len(rows), len(rows[0]), dtype=torch.long)
    )


def ours(family: Causal, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> Any:
    decoding = Decoding(max(lengths), frozenset())
    decoder = CausalDecoder(family, SLOTS, len(rows[0]) + max(lengths))
    return sample(Single(), [decoder], rows, decoding, seeds=range(len(rows)), slots=SLOTS, limits=lengths)


def static(family: Causal, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
    for start in range(0, len(rows), SLOTS):
        generate(family, rows[start : start + SLOTS], max(lengths[start : start + SLOTS]))


def continuous(family: Causal, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
    """One page a request, as many as fit at once; whole prompts enter, as they do in ours."""
    settings = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, eos_token_id=-1, pad_token_id=0)
    pages = ContinuousBatchingConfig(
        page_size=256, num_blocks=2 * SLOTS, max_requests_per_batch=SLOTS, max_batch_tokens=SLOTS * len(rows[0])
    )
    written: dict[str, int] = {}
    with family.model.continuous_batching_context_manager(
        settings, continuous_batching_config=pages, warmup=False
    ) as manager:
        names = [manager.add_request(list(row), max_new_tokens=limit) for row, limit in zip(rows, lengths, strict=True)]
        while len(written) < len(rows):
            result = manager.get_result(timeout=60)
            if result is None or result.error:
                raise RuntimeError(f"continuous batching gave up: {result}")
            if result.is_finished():
                written[result.request_id] = len(result.generated_tokens)
    if [written[name] for name in names] != list(lengths):
        raise RuntimeError("continuous batching wrote other numbers of tokens than were asked for")


def compare(subjects: dict[str, Callable[[], Any]], tokens: int, repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, subject in subjects.items():
            begun = time.process_time()
            subject()
            seconds[name].append(time.process_time() - begun)
    rates = {name: tokens / median(found) for name, found in seconds.items()}
    for name, rate in rates.items():
        against = "" if name == "potstill" else f"   potstill: {rates['potstill'] / rate:.2f} x"
        print(f"  {name:24s} {rate:7.1f} tokens/s{against}", flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Continuous batching changes how a model attends, and so has one of its own.
    family, other = (student(args.model, args.layers, getattr(torch, args.dtype)) for _ in range(2))
    lengths = ragged_lengths()
    equal, ragged = prompts(SLOTS, 64), prompts(len(lengths), 64)

    print(f"equal: {SLOTS} prompts, 64 new tokens each, {args.dtype}")
    found = {
        "equal": compare(
            {"potstill": lambda: ours(family, equal, [64] * SLOTS), "generate": lambda: generate(family, equal, 64)},
            64 * SLOTS,
            args.repeats,
        )
    }
    mean = sum(lengths) / len(lengths)
    print(f"ragged: {len(lengths)} prompts, {min(lengths)} to {max(lengths)} new tokens, mean {mean:.0f}")
    found["ragged"] = compare(
        {
            "potstill": lambda: ours(family, ragged, lengths),
            "static batches": lambda: static(family, ragged, lengths),
            "continuous batching": lambda: continuous(other, ragged, lengths),
        },
        sum(lengths),
        args.repeats,
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
