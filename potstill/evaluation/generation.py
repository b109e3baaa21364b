"""What models answer to held-out prompts, how close that is to the references, and how fast they answer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from potstill.data.examples import Tokenised
from potstill.evaluation.metrics.rouge import rouge_l_scores
from potstill.models.families import Family, check_positions, evaluating
from potstill.recipe import Evaluation
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
        check_positions(text, len(row.prompt_ids) + len(row.response_ids), f"row {row.example_id}")
    for row in answered:
        of = f"the prompt of row {row.example_id} with an answer of {settings.max_new_tokens}"
        check_positions(text, len(row.prompt_ids) + settings.max_new_tokens, of)


def answer(
    family: Family,
    tokenizer: Any,
    examples: Sequence[Tokenised],
    settings: Evaluation,
    *,
    temperature: float,
    seed: int,
) -> tuple[list[str], float]:
    """One response to each example's prompt, and new tokens per second of wall-clock time.

    Args:
        temperature: 0 is greedy.
        seed: of the draws.
    """
    texts: list[str] = []
    num_tokens = 0
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
            )
            num_tokens += sum(len(row) for row in ids)
            texts += [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    return texts, num_tokens / (time.perf_counter() - begun)


def judge_answers(
    family: Family, tokenizer: Any, examples: Sequence[Tokenised], settings: Evaluation, seed: int
) -> tuple[dict[str, float], list[dict[str, str]], list[dict[str, float]]]:
    """Rouge-L and speed of greedy and of sampled answers; the answers themselves; Rouge-L of each."""
    greedy, tokens_per_s = answer(family, tokenizer, examples, settings, temperature=0, seed=seed)
    sampled, _ = answer(family, tokenizer, examples, settings, temperature=settings.sampling_temperature, seed=seed)
    references = [[example.response] for example in examples]
    scores = {"rouge_l": rouge_l_scores(greedy, references), "rouge_l_sampled": rouge_l_scores(sampled, references)}
    figures = {name: fmean(values) if values else math.nan for name, values in scores.items()}
    figures |= {"tokens_per_s": tokens_per_s, "num_generated_examples": len(examples)}
    answers = [{"greedy": g, "sampled": s} for g, s in zip(greedy, sampled, strict=True)]
    return figures, answers, [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]


def greedy_rouge_l(
    family: Family, tokenizer: Any, examples: Sequence[Tokenised], settings: Evaluation
) -> dict[str, float]:
    """``rouge_l`` of greedy answers and ``rouge_l_stderr``, its standard error over examples, nan below two."""
    texts, _ = answer(family, tokenizer, examples, settings, temperature=0, seed=0)
    scores = rouge_l_scores(texts, [[example.response] for example in examples])
    error = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return {"rouge_l": fmean(scores), "rouge_l_stderr": error}
