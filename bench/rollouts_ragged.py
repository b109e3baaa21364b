"""B5: 32 responses of unlike lengths, 8 at a time, written by a student of 6 layers at temperature 1.

Prompts of 64 tokens, responses of 4 to 112 (mean 28), against static batches that run to the longest and against
transformers' continuous batching with 8 requests at a time. Lengths are forced, so all write the same useful tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from bench import measuring, workload
from bench.measuring import Effort
from bench.results import Result
from potstill.models.decoding import CausalDecoder
from potstill.models.families import Causal
from potstill.models.loading import load
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Single
from potstill.sampling.sampler import sample

SLOTS = 8
STATIC, CONTINUOUS = "static batches", "continuous batching"
MUST_GAIN: dict[str, dict[str, float | None]] = {
    "float32": {STATIC: 1.9, CONTINUOUS: 1.2},
    "bfloat16": {STATIC: 2.8, CONTINUOUS: None},
}


def measure(effort: Effort) -> list[Result]:
    """Seconds for all of it, in float32 and bfloat16, against both peers."""
    lengths = ragged_lengths(12, longest=16, mean=8) if effort.quick else ragged_lengths()
    rows = prompts(len(lengths), 16 if effort.quick else 64)
    return [result for name in MUST_GAIN for result in _in(name, rows, lengths, effort.repeats)]


def _in(dtype: str, rows: list[list[int]], lengths: list[int], repeats: int) -> list[Result]:
    # Continuous batching changes how a model attends, and so has one of its own.
    model = workload.first_layers(load(workload.MODEL, dtype=getattr(torch, dtype)).model, workload.LAYERS).eval()
    family, other = Causal(model), Causal(deepcopy(model))
    check(family, rows)
    subjects: dict[str, Callable[[], Any]] = {
        "potstill": partial(ours, family, rows, lengths),
        STATIC: partial(static, family, rows, lengths),
        CONTINUOUS: partial(continuous, other, rows, lengths),
    }
    seconds = measuring.in_turns(subjects, repeats)
    case = f"{sum(lengths)} tokens, {dtype}"
    return [
        Result("B5", case, "s", seconds["potstill"], peer, seconds[peer], target=target)
        for peer, target in MUST_GAIN[dtype].items()
    ]


def check(family: Causal, rows: list[list[int]], new: int = 4) -> None:
    """Greedy tokens are those of generate. Raises: RuntimeError."""
    if family.model.dtype != torch.float32:
        return  # the two round differently, and greedy choices follow
    decoder = CausalDecoder(family, SLOTS, len(rows[0]) + new)
    decoding = Decoding(new, frozenset(), temperature=0.0)
    said = sample(Single(), [decoder], rows[:SLOTS], decoding, seeds=range(SLOTS), slots=SLOTS)
    settings = GenerationConfig(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    ids = torch.tensor(rows[:SLOTS])
    written = family.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    if [list(response.ids) for response in said] != written[:, ids.shape[1] :].tolist():
        raise RuntimeError("the greedy tokens differ from transformers'")


def prompts(count: int, length: int) -> list[list[int]]:
    ids = torch.randint(10, 40_000, (count, length), generator=torch.Generator().manual_seed(0))
    return ids.tolist()


def ragged_lengths(count: int = 32, longest: int = 112, mean: int = 28) -> list[int]:
    """4 to ``longest``, as log-normal lengths are."""
    drawn = torch.empty(count).log_normal_(3.0, 0.8, generator=torch.Generator().manual_seed(3)).clamp(4, longest)
    scale = (mean * count - longest) / drawn[1:].sum()
    return [longest, *(drawn[1:] * scale).round().clamp(4, longest).int().tolist()]


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
