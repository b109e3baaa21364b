"""Useful tokens a second of training on rows of unlike lengths: padded at random, sorted by length, laid end to end.

    python bench/packing.py --model FOLDER [--rows 32] [--longest 256] [--share 0.4] [--repeats 3]

Forward and backward of the cross-entropy of one global batch in micro-batches of 8, in float32: one thread, processor
seconds, in turns in one process, medians. Useful are the tokens of prompts and responses; a third of each row is
prompt. Lengths are log-normal, ``--share`` is their mean over their largest, and 1 makes them all equal. That the
losses are the same is asserted first.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from potstill import objectives
from potstill.data.examples import Tokenised
from potstill.models.families import Family, family_of, pack
from potstill.models.loading import load
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.sources.dataset import batches, longest_first
from potstill.types import Batch

MICRO_SIZE = 8
SAME_LOSS = 1e-4  # of float32


def lengths_of(count: int, longest: int, share: float) -> list[int]:
    """Log-normal lengths, the first of them the longest."""
    if share == 1:
        return [longest] * count
    drawn = torch.empty(count - 1).log_normal_(0.0, 0.6, generator=torch.Generator().manual_seed(3))
    scale = (share * longest * count - longest) / drawn.sum()
    return [longest, *(drawn * scale).round().clamp(3, longest).int().tolist()]


def rows_of(lengths: Sequence[int], vocab: int) -> list[Tokenised]:
    """Rows of random tokens, in a random order."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for at in torch.randperm(len(lengths), generator=generator).tolist():
        ids = torch.randint(vocab, (lengths[at],), generator=generator).tolist()
        prompt = max(1, lengths[at] // 3)
        rows.append(Tokenised(str(at), tuple(ids[:prompt]), tuple(ids[prompt:]), "", "", truncated=False))
    return rows


def step(family: Family, micro_batches: Sequence[Batch]) -> float:
    """The cross-entropy in nats of a global batch, whose gradient it leaves in the model."""
    family.zero_grad(set_to_none=True)
    num_tokens = sum(batch.num_response_tokens for batch in micro_batches)
    loss = 0.0
    for batch in micro_batches:
        scale = batch.response_mask.to(family.model.dtype) / num_tokens
        term = BoundTerm("ce", objectives.cross_entropy, "tokens", 1.0, scale)
        total, _ = evaluate_terms(family.output(batch), None, batch, [term])
        total.backward()
        loss += total.item()
    return loss


def measure(
    model: str, *, rows: int = 32, longest: int = 256, share: float = 0.4, repeats: int = 3
) -> dict[str, float]:
    """Useful tokens a second of each way, ``<way>_over_padded``, and how much of rows padded at random is real.

    Args:
        model: an embedded name, a folder or a hub id. rows: of the global batch. longest: tokens of the longest row.
        share: the mean length over the longest. repeats: of each way, in turns.
    Raises: RuntimeError where the losses differ, or the model does not read rows laid end to end.
    """
    whole = load(model, dtype=torch.float32).model
    padded, packed = family_of(whole), family_of(whole)
    if why := pack(packed, "always"):
        raise RuntimeError(f"{model}: {why}")
    lengths = lengths_of(rows, longest, share)
    texts = rows_of(lengths, padded.vocab_size)
    at_random = list(batches(texts, MICRO_SIZE, 0))
    by_size = list(batches(longest_first(texts), MICRO_SIZE, 0))
    ways: dict[str, Callable[[], float]] = {
        "padded": lambda: step(padded, at_random),
        "sorted": lambda: step(padded, by_size),
        "packed": lambda: step(packed, at_random),
        "sorted and packed": lambda: step(packed, by_size),
    }
    losses = {name: way() for name, way in ways.items()}  # and what is done once is done
    if max(losses.values()) - min(losses.values()) > SAME_LOSS:
        raise RuntimeError(f"the losses differ: {losses}")
    seconds = _seconds(ways, repeats)
    rates = {name: sum(lengths) / found for name, found in seconds.items()}
    over = {f"{name}_over_padded": rate / rates["padded"] for name, rate in rates.items() if name != "padded"}
    computed = sum(max(_lengths(batch)) * len(batch) for batch in at_random)
    return rates | over | {"real_share": sum(lengths) / computed}


def _lengths(batch: Batch) -> list[int]:
    return (batch.prompt_mask.sum(1) + batch.response_mask.sum(1)).tolist()


def _seconds(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median of processor seconds that each takes, in turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            found[name].append(time.process_time() - begun)
    return {name: median(taken) for name, taken in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: value for name, value in vars(args).items() if name != "model"}
    found = measure(args.model, **settings)
    print(f"  {found['real_share']:.2f} of the tokens that are computed padded at random are real")
    for name in ("padded", "sorted", "packed", "sorted and packed"):
        against = "" if name == "padded" else f"   {found[f'{name}_over_padded']:.2f} x padded"
        print(f"  {name:18s} {found[name]:9.1f} tokens/s{against}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
