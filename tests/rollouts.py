"""Two tiny models of a small vocabulary, prompts, and sources of what the models write: in float64, so exactly."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from potstill import recipe, schedules
from potstill.data.examples import Tokenised
from potstill.models.families import Causal
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Mixed, Policy, Single, Speculative
from potstill.sampling.writer import LocalWriter
from potstill.sources.credit import LogRatioJudge
from potstill.sources.dataset import DatasetSource
from potstill.sources.rollout import RolloutSource
from potstill.sources.source import Share, Source
from potstill.teachers.local import LocalTeacher
from potstill.training.runtime import Runtime
from potstill.training.step import LiveStream, StepResult, train_step
from potstill.training.terms import LiveTerm
from potstill.types import Batch, Credit

END, VOCAB, LONGEST = 0, 10, 8
RUNTIME = Runtime(torch.device("cpu"), torch.float64)
PAPER = recipe.PolicyGradient()


def gpt2(seed: int, *, vocab: int = VOCAB, width: int = 8, spread: float = 0.5) -> Causal:
    """A GPT-2 of one layer. A LLaMA's norms would compute in float32."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab, n_embd=width, n_layer=1, n_head=2, n_positions=64, initializer_range=spread,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=END, eos_token_id=END,
    )  # fmt: skip
    return Causal(GPT2LMHeadModel(config).eval().double())


def rows(count: int = 12, *, longest: int = 5) -> list[Tokenised]:
    """Prompts of 1 to 5 tokens, the same whatever the longest response."""
    prompts, responses = random.Random(0), random.Random(1)
    made = []
    for number in range(count):
        prompt = tuple(prompts.randrange(1, VOCAB) for _ in range(1 + number % 5))
        response = tuple(responses.randrange(1, VOCAB) for _ in range(1 + number % longest))
        made.append(Tokenised(f"row:{number}", prompt, (*response, END), "", "", truncated=False))
    return made


def data(count: int = 12, *, longest: int = 5, seed: int = 3) -> DatasetSource:
    return DatasetSource(rows(count, longest=longest), seed=seed, pad_id=END)


def writer(spec: recipe.RolloutSource, student: Causal, teacher: Causal) -> LocalWriter:
    policies: dict[str, tuple[Policy, list[Causal]]] = {
        "student": (Single(), [student]),
        "teacher": (Single(), [teacher]),
        "token_mixed": (
            Mixed(getattr(spec.policy, "teacher_share", 0), getattr(spec.policy, "mix", "probabilities")),
            [student, teacher],
        ),
        "speculative": (Speculative(getattr(spec.policy, "top_k", 1)), [student, teacher]),
    }
    policy, families = policies[spec.policy.name]
    decoding = Decoding(spec.max_new_tokens, frozenset({END}), spec.temperature, spec.top_k, spec.top_p)
    return LocalWriter(policy, families, decoding, spec.slots)


def rollouts(
    student: Causal,
    teacher: Causal,
    spec: recipe.RolloutSource,
    *,
    credit: recipe.PolicyGradient | None = PAPER,
    prompts: DatasetSource | None = None,
    seed: int = 7,
) -> RolloutSource:
    judge = LogRatioJudge(student, LocalTeacher(teacher), credit) if credit else None
    return RolloutSource(
        prompts or data(), writer(spec, student, teacher), spec, seed=seed, judge=judge, dtype=torch.float64
    )


def spec(**settings: Any) -> recipe.RolloutSource:
    return recipe.RolloutSource.model_validate({"max_new_tokens": LONGEST} | settings)


class Given:
    """A source of one global batch."""

    def __init__(self, batches: Sequence[Batch]):
        self._batches = list(batches)

    def next(self, share: Share, progress: float) -> list[Batch]:
        return self._batches

    def observe(self, validation: Mapping[str, float]) -> None: ...

    def figures(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def held(self) -> list[Batch]:
        return []

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def step(
    student: Causal, teacher: Causal, stream: recipe.Stream, source: Source, *, size: int = 4, micro_size: int = 4
) -> tuple[StepResult, dict[str, Tensor]]:
    """One optimiser step that moves nothing: its figures, and the gradient it would have followed."""
    terms = tuple(LiveTerm(stream.name, term) for term in stream.terms)
    live = LiveStream(stream, source, LocalTeacher(teacher) if stream.signal.name == "logits" else None, terms)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    batching = recipe.Batching(size=size, micro_size=micro_size)
    result = train_step(student, student, optimizer, [live], batching, 1e9, RUNTIME, progress=0.5)
    return result, {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def picked(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch."""
    at = torch.tensor(rows)
    chosen = {name: value[at] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    credit = batch.credit and Credit(*(value[at] for value in vars(batch.credit).values()))
    return replace(batch, example_ids=tuple(batch.example_ids[row] for row in rows), credit=credit, **chosen)


def padded(batch: Batch, left: int, right: int, junk: int = VOCAB - 1) -> Batch:
    """The batch with more padding than it needs, of some token or other; figures of tokens stay 0 there."""
    credit = batch.credit and Credit(*(F.pad(value, (0, right)) for value in vars(batch.credit).values()))
    weights = None if batch.importance_weights is None else F.pad(batch.importance_weights, (0, right), value=1.0)
    return replace(
        batch,
        prompt_ids=F.pad(batch.prompt_ids, (left, 0), value=junk),
        prompt_mask=F.pad(batch.prompt_mask, (left, 0)),
        response_ids=F.pad(batch.response_ids, (0, right), value=junk),
        response_mask=F.pad(batch.response_mask, (0, right)),
        importance_weights=weights,
        credit=credit,
    )


def flat(batches: Sequence[Batch]) -> list[tuple[str, list[int]]]:
    """Which tokens stand in batches, by row."""
    return [
        (name, ids[mask].tolist())
        for batch in batches
        for name, ids, mask in zip(batch.example_ids, batch.response_ids, batch.response_mask, strict=True)
    ]


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    """Whether batches agree in every tensor, to the last bit."""
    return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))


def _same(a: Batch, b: Batch) -> bool:
    tensors = [(getattr(a, name), getattr(b, name)) for name, value in vars(a).items() if isinstance(value, Tensor)]
    credit = [*zip(vars(a.credit).values(), vars(b.credit).values(), strict=True)] if a.credit and b.credit else []
    alike = a.example_ids == b.example_ids and (a.credit is None) == (b.credit is None)
    return alike and all(y is not None and torch.equal(x, y) for x, y in [*tensors, *credit])


def log_probs(family: Causal, prompt: Sequence[int], response: Sequence[int], temperature: float = 1.0) -> Tensor:
    """The log-probability of each token of a response, by the model's own forward."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logits = family.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]


def fixed(value: float) -> schedules.Schedule:
    return schedules.build(value)
