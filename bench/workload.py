"""What the benchmarks of whole steps have in common: SmolLM2-135M teaches its own first 6 layers.

Four sequences of 256 tokens, of which 64 are the prompt; all weights are trained, in float32 unless said otherwise. The
learning rate is 0, so that every subject does the whole of its work and the next one finds the student as it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch

from potstill import recipe
from potstill.data.examples import Tokenised
from potstill.models.families import Causal
from potstill.models.loading import load
from potstill.sources.dataset import DatasetSource
from potstill.sources.source import Source
from potstill.teachers.local import SignalSource
from potstill.training import optim
from potstill.training.runtime import Runtime
from potstill.training.step import LiveStream, train_step
from potstill.training.terms import LiveTerm

MODEL, LAYERS = "smollm2-135m-instruct", 6
ROWS, PROMPT, RESPONSE = 4, 64, 192
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Models:
    """Whom the steps are about. The optimizer is shared by all subjects of a benchmark."""

    teacher: Causal
    student: Causal
    tokenizer: Any
    optimizer: torch.optim.Optimizer


def models(dtype: torch.dtype = torch.float32, layers: int = LAYERS) -> Models:
    """The teacher, frozen, and a student of its first layers, ready to be trained."""
    loaded = load(MODEL, dtype=dtype)
    teacher = Causal(loaded.model).requires_grad_(False).eval()
    student = Causal(first_layers(loaded.model, layers)).requires_grad_(True).train()
    optimizer = optim.build(student, recipe.Optimizer())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return Models(teacher, student, loaded.tokenizer, optimizer)


def first_layers(model: Any, layers: int) -> Any:
    """A copy of a model's first layers, with its embeddings and its last norm."""
    whole, model.model.layers = model.model.layers, model.model.layers[:layers]
    cut = deepcopy(model)
    model.model.layers = whole
    cut.config.num_hidden_layers = layers
    return cut


def copied(model: Any, dtype: torch.dtype) -> Any:
    """A copy of a model in another type."""
    return deepcopy(model).to(dtype)


def rows(tokenizer: Any, count: int = ROWS, prompt: int = PROMPT, response: int = RESPONSE) -> list[Tokenised]:
    """The starter data laid end to end, in pieces of equal lengths."""
    lines = files("potstill.data.starter").joinpath("train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = (f"{row['prompt']}\n{row['response']}\n\n" for row in map(json.loads, lines))
    ids: list[int] = []
    while len(ids) < count * (prompt + response):
        ids += tokenizer.encode(next(texts))
    pieces = (tuple(ids[at : at + prompt + response]) for at in range(0, len(ids), prompt + response))
    return [
        Tokenised(f"row:{at}", piece[:prompt], piece[prompt:], "", "", truncated=True)
        for at, piece in zip(range(count), pieces, strict=False)
    ]


def data(tokenizer: Any, texts: Sequence[Tokenised]) -> DatasetSource:
    """The rows, in an order of its own at every epoch."""
    return DatasetSource(texts, seed=0, pad_id=tokenizer.eos_token_id)


def stream(
    source: Source, teacher: SignalSource | None, signal: Any = "logits", objective: str = "forward_kl"
) -> LiveStream:
    """A stream of a recipe with one term."""
    spec = recipe.Stream.model_validate({"signal": signal, "terms": [{"objective": objective}]})
    return LiveStream(spec, source, teacher, tuple(LiveTerm(spec.name, term) for term in spec.terms))


def step(models: Models, *streams: LiveStream, dtype: torch.dtype = torch.float32, size: int = ROWS) -> float:
    """Potstill's optimiser step, and its loss."""
    runtime, batching = Runtime(models.student.model.device, dtype), recipe.Batching(size=size)
    result = train_step(
        models.student, models.student, models.optimizer, streams, batching, MAX_GRAD_NORM, runtime, progress=0.5
    )
    return result.loss


def inputs(texts: Sequence[Tokenised]) -> dict[str, torch.Tensor]:
    """Rows of equal lengths as transformers and TRL take them: the prompts' labels are -100."""
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids] for row in texts])
    labels = ids.clone()
    labels[:, : len(texts[0].prompt_ids)] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
