"""What others do at the same step: a plain loop on full logits, transformers' cross-entropy, TRL 1.16's trainers.

Each takes the models' student through forward, backward, clipping and the optimizer, and returns the loss.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.measuring import LeftOut
from bench.workload import MAX_GRAD_NORM, Models

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
NEEDS_TRL = "TRL is not installed: its subjects are left out (pip install -c constraints.txt -r bench/requirements.txt)"

Step = Callable[[], float]
Inputs = Mapping[str, Tensor]


def full_logit_loss(student: Any, teacher: Any, given: Inputs) -> Tensor:
    """Forward KL as one writes it: both models' logits, their softmaxes, and the prompts left out at the end."""
    ids = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
    log_q = student(**ids).logits[:, :-1].log_softmax(-1)
    with torch.no_grad():
        log_p = teacher(**ids).logits[:, :-1].log_softmax(-1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    return divergence[given["labels"][:, 1:] != -100].mean()


def plain(models: Models, given: Inputs) -> float:
    """One step of the loop that everybody writes first."""
    return _update(models, lambda: full_logit_loss(models.student.model, models.teacher.model, given))


def fine_tuning(models: Models, given: Inputs) -> float:
    """One step of cross-entropy with transformers' own loss."""
    return _update(models, lambda: models.student.model(**given).loss)


def no_vocabulary(models: Models, given: Inputs) -> float:
    """Both models without their heads, forward and backward: no exact loss without a cache can do with less."""
    ids = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}

    def loss() -> Tensor:
        with torch.no_grad():
            models.teacher.model.base_model(**ids)
        states: Tensor = models.student.model.base_model(**ids).last_hidden_state
        return states.square().mean()

    return _update(models, loss)


def gkd(models: Models) -> Callable[[Inputs], float]:
    """A step of TRL's GKDTrainer on data (lmbda 0) with forward KL (beta 0), in float32 and without checkpointing.

    Raises: LeftOut without TRL.
    """
    try:
        from trl.experimental.gkd import GKDConfig, GKDTrainer
    except ImportError as error:
        raise LeftOut(NEEDS_TRL) from error
    settings = GKDConfig(lmbda=0.0, beta=0.0, max_length=None, **_common())
    trainer = _made(GKDTrainer, models, settings, processing_class=models.tokenizer)
    return lambda given: _update(models, lambda: trainer.compute_loss(models.student.model, dict(given)))


def distillation(models: Models, new_tokens: int, *, in_bfloat16: bool = False) -> Any:
    """TRL's DistillationTrainer, forward KL on what the student has just written.

    Raises: LeftOut without TRL.
    """
    try:
        from trl import DistillationConfig, DistillationTrainer
    except ImportError as error:
        raise LeftOut(NEEDS_TRL) from error
    # Nobody stops early, so that all subjects write the same number of tokens.
    settings = DistillationConfig(
        beta=0.0,
        max_completion_length=new_tokens,
        generation_kwargs={"min_new_tokens": new_tokens},
        **_common() | {"bf16": in_bfloat16},
    )
    trainer = _made(DistillationTrainer, models, settings, processing_class=models.tokenizer)
    trainer.current_gradient_accumulation_steps = 1  # as its training loop sets it
    return trainer


def distillation_step(trainer: Any, models: Models, prompts: list[list[int]]) -> float:
    """The trainer's own step: it writes, asks the teacher, and goes backward; then the update."""
    trainer._tokenize_prompts = lambda texts: (prompts, None, {})  # ours are ids already
    models.optimizer.zero_grad(set_to_none=True)
    loss = trainer.training_step(models.student.model, [{"prompt": ""} for _ in prompts], None)
    _clip_and_step(models)
    return float(loss)


def distillation_loss(trainer: Any, models: Models, given: Inputs, prompt: int) -> float:
    """What the trainer computes on text that is given, and not written by the student."""
    ids, mask = given["input_ids"], given["attention_mask"]
    written = {
        "prompt_ids": ids[:, :prompt], "prompt_mask": mask[:, :prompt],
        "completion_ids": ids[:, prompt:], "completion_mask": mask[:, prompt:],
        "num_items_in_batch": mask[:, prompt:].sum(),
    }  # fmt: skip
    with torch.no_grad():
        return float(trainer.compute_loss(models.student.model, written))


def _common() -> dict[str, Any]:
    folder = tempfile.mkdtemp(prefix="bench-trl-")
    return {
        "output_dir": folder, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [],
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "disable_tqdm": True, "max_steps": 1,
    }  # fmt: skip


def _made(trainer: Any, models: Models, settings: Any, **given: Any) -> Any:
    from datasets import Dataset  # type: ignore[import-untyped]

    with contextlib.redirect_stderr(io.StringIO()):
        made = trainer(
            model=models.student.model,
            teacher_model=models.teacher.model,
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}] * 4),
            optimizers=(models.optimizer, None),
            **given,
        )
    models.student.model.train()
    return made


def _update(models: Models, loss: Callable[[], Tensor]) -> float:
    models.optimizer.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    _clip_and_step(models)
    return value.item()


def _clip_and_step(models: Models) -> None:
    nn.utils.clip_grad_norm_(models.student.parameters(), MAX_GRAD_NORM)
    models.optimizer.step()
