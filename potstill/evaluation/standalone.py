"""Measure any model on any rows, outside a run."""

from __future__ import annotations

from typing import Any

from potstill.data.prepare import prepare_all
from potstill.evaluation.evaluator import measure
from potstill.evaluation.generation import check_lengths, judge_answers
from potstill.models.devices import device_named
from potstill.models.families import check_projection, family_of, pack
from potstill.models.loading import load
from potstill.recipe import Data, Evaluation, Stage
from potstill.sources.dataset import batches
from potstill.teachers.align import shared_vocabulary
from potstill.teachers.local import LocalTeacher

MEASURED = {"evaluation.max_examples": 500, "evaluation.generate_examples": 32, "evaluation.max_new_tokens": 96}
# How a student is asked, which belongs to it; which rows there are and how they are laid out belongs to the file.
ASKED = {
    "data": ("prefix", "target", "template", "max_prompt_tokens", "max_response_tokens", "long_prompts"),
    "evaluation": (
        "accuracy",
        "max_new_tokens",
        "num_beams",
        "repetition_penalty",
        "sampling_temperature",
        "sampling_top_p",
        "leave_out",
        "batch_size",
    ),
}


def as_trained(stage: Stage) -> dict[str, Any]:
    """How the student of a stage was asked when it was trained and measured: settings by dotted key."""
    keys = [(section, name) for section, names in ASKED.items() for name in names]
    return {f"{section}.{name}": getattr(getattr(stage, section), name) for section, name in keys}


def evaluate(
    name: str,
    data: Data,
    settings: Evaluation,
    *,
    teacher: str | None = None,
    answers: bool = True,
    device: str = "cpu",
    seed: int = 1,
    allow_remote_code: bool = False,
) -> dict[str, Any]:
    """Figures of a model on all rows of a file, and against a teacher where one is named.

    Args:
        name: an embedded name, a folder, a .gguf file or a hub id.
        data: which rows, and how they are asked.
        settings: how many are measured and answered, and how; ``leave_out`` its samples.
        teacher: what to compare with; it must share the model's tokenizer.
        answers: whether prompts are answered, too.
        device: of both models.
        seed: of sampled answers.
        allow_remote_code: let models run Python that comes with them.
    Returns: the figures of ``measure`` and, where rows were answered, those of ``judge_answers``.
    Raises: ConfigError, DataError, ModelError, TeacherError.
    """
    where = device_named(device)
    loaded = load(name, device=where, allow_remote_code=allow_remote_code)
    rows = prepare_all(data, loaded.tokenizer)[: settings.max_examples]
    answered = rows[: settings.generate_examples] if answers else ()
    compared, vocab_size = None, None
    if teacher:
        other = load(teacher, device=where, allow_remote_code=allow_remote_code)
        sizes = [model.get_output_embeddings().weight.shape[0] for model in (other.model, loaded.model)]
        vocab_size = shared_vocabulary(other.tokenizer, sizes[0], loaded.tokenizer, sizes[1]).size
        compared = LocalTeacher(family_of(other.model, vocab_size))
    family = family_of(loaded.model, vocab_size)
    check_projection(family, name)
    for model in (family, *([compared.family] if compared else [])):
        pack(model)
        check_lengths(model.model.config, rows, answered if model is family else (), settings)
    figures: dict[str, Any] = dict(
        measure(family, compared, batches(rows, settings.batch_size, loaded.tokenizer.eos_token_id))
    )
    if answered:
        figures |= judge_answers(family, loaded.tokenizer, answered, settings, seed, data.target)[0]
    figures["num_parameters"] = sum(p.numel() for p in loaded.model.parameters())
    return figures | {"size_on_disk_bytes": loaded.size_on_disk}
