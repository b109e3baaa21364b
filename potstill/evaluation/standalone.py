"""Measure any model on any rows, outside a run."""

from __future__ import annotations

from typing import Any

from potstill.data.prepare import prepare_all
from potstill.evaluation.evaluator import measure
from potstill.evaluation.generation import check_lengths, judge_answers
from potstill.models.devices import device_named
from potstill.models.families import check_projection, family_of
from potstill.models.loading import load
from potstill.recipe import Data, Evaluation
from potstill.sources.dataset import batches
from potstill.teachers.align import shared_vocabulary
from potstill.teachers.local import LocalTeacher


def evaluate(
    name: str,
    *,
    data: str,
    data_format: str = "prompt_response",
    teacher: str | None = None,
    max_examples: int = 500,
    generate_examples: int = 32,
    max_new_tokens: int = 96,
    device: str = "cpu",
    seed: int = 1,
    allow_remote_code: bool = False,
) -> dict[str, Any]:
    """Figures of a model on all rows of a file, and against a teacher where one is named.

    Args:
        name: an embedded name, a folder, a .gguf file or a hub id.
        data: a .jsonl, .csv or .parquet file, or "starter".
        data_format: how its rows are laid out.
        teacher: what to compare with; it must share the model's tokenizer.
        max_examples: rows measured, from the first. generate_examples: rows answered, for Rouge-L.
        max_new_tokens: where an answer is cut.
        device: of both models.
        seed: of sampled answers.
        allow_remote_code: let models run Python that comes with them.
    Returns: the figures of ``measure`` and, where rows were answered, Rouge-L and speed.
    Raises: ConfigError, DataError, ModelError, TeacherError.
    """
    where = device_named(device)
    settings = Evaluation(max_new_tokens=max_new_tokens)
    loaded = load(name, device=where, allow_remote_code=allow_remote_code)
    rows = prepare_all(Data.model_validate({"path": data, "format": data_format}), loaded.tokenizer)[:max_examples]
    compared, vocab_size = None, None
    if teacher:
        other = load(teacher, device=where, allow_remote_code=allow_remote_code)
        sizes = [model.get_output_embeddings().weight.shape[0] for model in (other.model, loaded.model)]
        vocab_size = shared_vocabulary(other.tokenizer, sizes[0], loaded.tokenizer, sizes[1]).size
        compared = LocalTeacher(family_of(other.model, vocab_size))
    family = family_of(loaded.model, vocab_size)
    check_projection(family, name)
    for model in (family, *([compared.family] if compared else [])):
        check_lengths(model.model.config, rows, rows[:generate_examples] if model is family else (), settings)
    figures: dict[str, Any] = dict(
        measure(family, compared, batches(rows, settings.batch_size, loaded.tokenizer.eos_token_id))
    )
    if generate_examples:
        figures |= judge_answers(family, loaded.tokenizer, rows[:generate_examples], settings, seed)[0]
    figures["num_parameters"] = sum(p.numel() for p in loaded.model.parameters())
    return figures | {"size_on_disk_bytes": loaded.size_on_disk}
