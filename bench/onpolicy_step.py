"""B4: a step on what the student writes for it: four prompts of 64 tokens, 64 new tokens each, forward KL.

Buffered: 16 prompts are answered at once and trained on in four updates, as ``batches_per_rollout: 4`` does. The last
of them learns from a student three updates old, so its figure stands apart from the exact ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bench import measuring, peers, workload
from bench.measuring import Effort
from bench.results import Result
from bench.workload import Models
from potstill import recipe
from potstill.data.examples import Tokenised
from potstill.models.families import Causal
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Single
from potstill.sampling.writer import LocalWriter
from potstill.sources.rollout import RolloutSource
from potstill.teachers.local import LocalTeacher

PROMPT, NEW, BUFFERED = 64, 64, 4
TRL = "TRL Distillation"
MUST_GAIN = {"float32": 1.3, "bfloat16": 1.7, "float32, buffered": None, "bfloat16, buffered": 2.0}


def measure(effort: Effort) -> list[Result]:
    """Seconds a step of each way of ours, against a plain loop and TRL's DistillationTrainer, both in float32."""
    prompt, new = (16, 8) if effort.quick else (PROMPT, NEW)
    models = workload.models()
    texts = workload.rows(models.tokenizer, 4 * BUFFERED, prompt, new)
    ours = {
        "float32": our_step(models, texts, new),
        "float32, buffered": our_step(models, texts, new, batches=BUFFERED),
        "bfloat16": our_step(models, texts, new, dtype=torch.bfloat16),
        "bfloat16, buffered": our_step(models, texts, new, batches=BUFFERED, dtype=torch.bfloat16),
    }
    others: dict[str, Callable[[], Any]] = {"full logits": partial(plain_step, models, texts[:4], new)}
    given, exact = workload.inputs(texts[:4]), workload.data(models.tokenizer, texts[:4])
    losses = {
        "potstill": workload.step(models, workload.stream(exact, LocalTeacher(models.teacher))),
        "full logits": peers.plain(models, given),
    }
    try:
        trainer = peers.distillation(models, new)
        losses[TRL] = peers.distillation_loss(trainer, models, given, prompt)
        prompts = [list(text.prompt_ids) for text in texts[:4]]
        others[TRL] = partial(peers.distillation_step, trainer, models, prompts)
    except measuring.LeftOut as reason:
        print(reason)
    measuring.assert_equal(losses)
    seconds = measuring.in_turns(ours | others, effort.repeats)
    return [
        Result("B4", f"step, {name}", "s", _each(seconds[name], name), peer, seconds[peer], target=target)
        for name, wanted in MUST_GAIN.items()
        for peer, target in ((peer, wanted if peer == TRL else None) for peer in others)
    ]


def our_step(
    models: Models, texts: list[Tokenised], new: int, *, batches: int = 1, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """As many steps as a rollout lasts. With bfloat16 the student computes in it, and the teacher is held in it."""
    teacher = models.teacher
    if dtype == torch.bfloat16:
        teacher = Causal(workload.copied(teacher.model, dtype)).requires_grad_(False).eval()
    spec = recipe.RolloutSource(max_new_tokens=new, batches_per_rollout=batches, slots=4 * batches)
    writer = LocalWriter(Single(), [models.student], Decoding(new, frozenset()), slots=spec.slots)
    source = RolloutSource(workload.data(models.tokenizer, texts), writer, spec, seed=0)
    stream = workload.stream(source, LocalTeacher(teacher))
    stream = replace(stream, spec=stream.spec.model_copy(update={"source": spec}))

    def steps() -> None:
        for _ in range(batches):
            workload.step(models, stream, dtype=dtype)

    return steps


def plain_step(models: Models, texts: list[Tokenised], new: int) -> float:
    """transformers' generate, then the plain loop on what it wrote."""
    prompts = torch.tensor([text.prompt_ids for text in texts])
    models.student.model.eval()
    written = models.student.model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0,
        max_new_tokens=new, min_new_tokens=new, pad_token_id=models.tokenizer.eos_token_id,
    )  # fmt: skip
    models.student.model.train()
    labels = written.clone()
    labels[:, : prompts.shape[1]] = -100
    return peers.plain(models, {"input_ids": written, "attention_mask": torch.ones_like(written), "labels": labels})


def _each(seconds: tuple[float, ...], name: str) -> tuple[float, ...]:
    """Of one step of a buffer."""
    return tuple(taken / BUFFERED for taken in seconds) if "buffered" in name else seconds
