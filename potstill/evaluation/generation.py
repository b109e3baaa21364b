"""What models answer to held-out prompts, how close that is to the references, and how fast they answer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from potstill.data.examples import Tokenised
from potstill.evaluation.labels import label_scores
from potstill.evaluation.metrics.rouge import rouge_l_scores
from potstill.evaluation.metrics.significance import wilson_interval
from potstill.models.families import Family, evaluating
from potstill.models.positions import check_positions
from potstill.recipe import Evaluation, Target
from potstill.sampling.generate import generate
from potstill.sources.dataset import batches


def check_lengths(config: Any, rows: Iterable[Tokenised], answered: Iterable[Tokenised], settings: Evaluation) -> None:
    """Refuse text that a model does not see the whole of.

    Args:
        config: of the model.
        rows: read with their responses. answered: whose prompts are answered.
        settings: how long an answer may be.
    Raises: ModelError, naming the first row.
    """
    text = config.get_text_config()
    for row in rows:
        check_positions(text, len(row.prompt_ids), len(row.response_ids), f"row {row.example_id}")
    for row in answered:
        of = f"the prompt of row {row.example_id} with an answer of {settings.max_new_tokens}"
        check_positions(text, len(row.prompt_ids), settings.max_new_tokens, of)


class Answered(NamedTuple):
    """Responses, new tokens per second of wall-clock time, and the share of responses that were cut."""

    texts: list[str]
    tokens_per_s: float
    cut_share: float


def answer(
    family: Family,
    tokenizer: Any,
    examples: Sequence[Tokenised],
    settings: Evaluation,
    *,
    temperature: float,
    seed: int,
) -> Answered:
    """One response to each example's prompt.

    Args:
        temperature: 0 is greedy, or the best of a beam search where the settings have beams.
        seed: of the draws.
    """
    texts: list[str] = []
    num_tokens = num_cut = 0
    begun = time.perf_counter()
    with evaluating(family):
        for index, batch in enumerate(batches(examples, settings.batch_size, tokenizer.eos_token_id)):
            ids = generate(
                family,
                batch.to(family.model.device),
                tokenizer,
                max_new_tokens=settings.max_new_tokens,
                temperature=temperature,
                seed=seed + index,
                num_beams=1 if temperature else settings.num_beams,
                repetition_penalty=settings.repetition_penalty,
                top_p=settings.sampling_top_p,
            )
            num_tokens += sum(len(row) for row in ids)
            num_cut += sum(len(row) == settings.max_new_tokens for row in ids)  # the end would have been among them
            texts += [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    return Answered(texts, num_tokens / (time.perf_counter() - begun), num_cut / max(1, len(texts)))


def judge_answers(
    family: Family,
    tokenizer: Any,
    examples: Sequence[Tokenised],
    settings: Evaluation,
    seed: int,
    target: Target = "response",
) -> tuple[dict[str, float], list[dict[str, str]], list[dict[str, float]]]:
    """Figures of greedy and of sampled answers: Rouge-L, accuracy where it is asked for, speed, and ``cut_share``, how
    many of the greedy ones had no end within ``max_new_tokens``.

    Args:
        target: the form of the answers, which says what in them is a label and what a rationale.
    Returns: the figures; the answers themselves; the scores of each.
    """
    greedy, tokens_per_s, cut_share = answer(family, tokenizer, examples, settings, temperature=0, seed=seed)
    answers = {"greedy": greedy}
    scores = _greedy_scores(greedy, examples, settings, target)
    if "samples" not in settings.leave_out:
        drawn = answer(family, tokenizer, examples, settings, temperature=settings.sampling_temperature, seed=seed)
        answers["sampled"] = drawn.texts
        scores["rouge_l_sampled"] = rouge_l_scores(drawn.texts, [[example.response] for example in examples])
    figures = {name: _mean(values) for name, values in scores.items()} | _interval(scores.get("accuracy"))
    figures |= {"tokens_per_s": tokens_per_s, "cut_share": cut_share, "num_generated_examples": len(examples)}
    of_each = [dict(zip(answers, texts, strict=True)) for texts in zip(*answers.values(), strict=True)]
    return figures, of_each, [_there(scores, values) for values in zip(*scores.values(), strict=True)]


def greedy_figures(
    family: Family, tokenizer: Any, examples: Sequence[Tokenised], settings: Evaluation, target: Target = "response"
) -> dict[str, float]:
    """``rouge_l`` of greedy answers, ``accuracy`` where it is asked for, and the standard error of each over examples,
    ``rouge_l_stderr``, nan below two."""
    texts = answer(family, tokenizer, examples, settings, temperature=0, seed=0).texts
    scores = _greedy_scores(texts, examples, settings, target)
    figures = {name: _mean(values) for name, values in scores.items()}
    return figures | {f"{name}_stderr": _error(values) for name, values in scores.items()}


def _greedy_scores(
    texts: Sequence[str], examples: Sequence[Tokenised], settings: Evaluation, target: Target
) -> dict[str, Sequence[float | None]]:
    references = [example.response for example in examples]
    return {
        "rouge_l": rouge_l_scores(texts, [[reference] for reference in references]),
        **label_scores(texts, references, accuracy=settings.accuracy, target=target),
    }


def _there(names: Iterable[str], values: Sequence[float | None]) -> dict[str, float]:
    """The scores of one row that it has."""
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def _mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return fmean(there) if there else math.nan


def _error(values: Sequence[float | None]) -> float:
    """The standard error of the mean."""
    there = [value for value in values if value is not None]
    return stdev(there) / math.sqrt(len(there)) if len(there) > 1 else math.nan


def _interval(right: Sequence[float | None] | None) -> dict[str, float]:
    """The bounds of the 95% interval of a share, where there is one."""
    if not right:
        return {}
    low, high = wilson_interval(right.count(1.0), len(right))
    return {"accuracy_low": low, "accuracy_high": high}
