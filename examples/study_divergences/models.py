"""Teachers and initial students: GPT-2 shapes trained from scratch by cross-entropy, saved once with their hash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from corpus import streams, windows
from jaxtyping import Float, Int
from settings import Settings, Shape
from store import digest, published
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from potstill.models.families import Causal
from potstill.objectives import cross_entropy

# Streams of random numbers of one seed that must not meet: a method's windows are not those of its initial student.
TEACHER, INITIAL, DISTIL, TEACHER_TEXT, ROLLOUT, EVALUATION = (1_000_003 * part for part in range(1, 7))
WEIGHTS = "model.safetensors"


def new_model(shape: Shape, settings: Settings, seed: int) -> Causal:
    """A model with weights that depend on the seed alone."""
    config = GPT2Config(
        vocab_size=settings.vocab_size,
        n_positions=settings.max_positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    return Causal(GPT2LMHeadModel(config))


def next_token_logits(family: Causal, ids: Int[Tensor, "row token"], first: int) -> Float[Tensor, "row scored vocab"]:
    """Logits of the tokens from position ``first`` on, each from what stands before it."""
    logits: Tensor = family.model(input_ids=ids[:, :-1], use_cache=False).logits
    return logits[:, first - 1 :]


def fit(
    student: Causal,
    losses: Iterable[Float[Tensor, "row scored"]],
    *,
    steps: int,
    learning_rate: float,
    max_grad_norm: float,
    warmup: float = 0.0,
) -> list[float]:
    """Minimise the mean of each step's losses: AdamW, a cosine to 0, gradients clipped. Returns the means, in nats.

    ``losses`` must make each step's when it is asked, from the student as it is then.

    Raises: FloatingPointError at a step whose loss is not finite.
    """
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.01)
    means = []
    for step, loss in enumerate(losses):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scheduled((step + 0.5) / steps, warmup)
        mean = loss.mean()
        if not mean.isfinite():
            raise FloatingPointError(f"the loss of step {step + 1} is {float(mean)}")
        optimizer.zero_grad()
        mean.backward()
        nn.utils.clip_grad_norm_(student.parameters(), max_grad_norm)
        optimizer.step()
        means.append(float(mean.detach()))
    return means


def scheduled(progress: float, warmup: float) -> float:
    """The learning rate's factor: linear from 0 over the warm-up, then a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def make_teacher(out: Path, settings: Settings, seed: int) -> None:
    """Train and save the teacher of a seed, unless that is done."""
    family = new_model(settings.teacher, settings, TEACHER + seed)
    count = settings.teacher_steps * settings.teacher_batch
    rows = windows(streams(out)["train"], count, settings.window_tokens, TEACHER + seed)
    _make(
        teacher_folder(out, seed), family, rows.split(settings.teacher_batch), settings.teacher_learning_rate, settings
    )


def make_initial_student(out: Path, settings: Settings, seed: int) -> None:
    """Train and save what all students of a seed start from, unless that is done."""
    family = new_model(settings.student, settings, INITIAL + seed)
    count = settings.initial_steps * settings.batch
    rows = windows(streams(out)["train"], count, settings.window_tokens, INITIAL + seed)
    _make(student_folder(out, seed), family, rows.split(settings.batch), settings.initial_learning_rate, settings)


def load(folder: Path) -> tuple[Causal, str]:
    """A saved model and the hash of its weights."""
    return Causal(GPT2LMHeadModel.from_pretrained(folder)), digest(folder / WEIGHTS)


def teacher_folder(out: Path, seed: int) -> Path:
    return out / "models" / f"teacher-{seed}"


def student_folder(out: Path, seed: int) -> Path:
    return out / "models" / f"student-{seed}"


def _make(folder: Path, family: Causal, batches: Sequence[Tensor], learning_rate: float, settings: Settings) -> None:
    if folder.exists():
        return
    family.train()
    losses = (cross_entropy(next_token_logits(family, ids, 1), ids[:, 1:]) for ids in batches)
    steps, clip = len(batches), settings.max_grad_norm
    fit(family, losses, steps=steps, learning_rate=learning_rate, max_grad_norm=clip, warmup=0.05)
    with published(folder) as draft:
        family.model.save_pretrained(draft)
