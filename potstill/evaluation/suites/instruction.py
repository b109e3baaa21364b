"""Instructions: Rouge-L against the references, greedy and sampled, as MiniLLM and the works after it report it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from potstill.data.catalogue.item import Item
from potstill.evaluation.metrics.diversity import distinct_n
from potstill.evaluation.metrics.rouge import rouge_l_scores
from potstill.evaluation.metrics.text import exact_match, num_words
from potstill.evaluation.suites.scoring import ByPrimary, mean_scores
from potstill.evaluation.suites.subject import Subject
from potstill.evaluation.suites.suite import Row, Scores, Settings, row_of


class Instruction(ByPrimary):
    """Rouge-L (stemmed F-measure x 100, best of the references), exact match, length, and how varied the words are.

    The sampled figure is the mean over seeds, its deviation that of the seeds' own means. ``distinct_n``: the share of
    all runs of n words, over all greedy answers together, that are different ones.
    """

    version = 2
    shortens = True
    headline: tuple[str, ...] = (
        "rouge_l_greedy",
        "rouge_l_sampled",
        "exact_match_greedy",
        "distinct_2_greedy",
        "words_greedy",
    )
    primary = "rouge_l_greedy"

    def ask(self, subject: Subject, items: Sequence[Item], settings: Settings) -> list[Row]:
        prompts = settings.framed(items)
        ids = [item.id for item in items]
        greedy = subject.decoding(settings.max_new_tokens, temperature=0.0, no_repeat_ngram=settings.no_repeat_ngram)
        written = {"greedy": subject.write(prompts, ids, greedy, seed=0)}
        drawn = subject.decoding(
            settings.max_new_tokens, temperature=settings.temperature, no_repeat_ngram=settings.no_repeat_ngram
        )
        for seed in settings.seeds:
            written[f"seed_{seed}"] = subject.write(prompts, ids, drawn, seed=seed)
        return [
            row_of(item, prompt, said := {way: texts[at] for way, texts in written.items()}, _scores(item, said))
            for at, (item, prompt) in enumerate(zip(items, prompts, strict=True))
        ]

    def scores(self, rows: Sequence[Row], settings: Settings) -> Scores:
        found = mean_scores(rows)
        by_seed = [fmean(row["scores"][f"rouge_l_seed_{seed}"] for row in rows) for seed in settings.seeds]
        if len(by_seed) > 1:
            found["rouge_l_sampled"]["deviation_of_seeds"] = stdev(by_seed)
        answers = [row["predictions"]["greedy"].lower().split() for row in rows]
        distinct = {f"distinct_{n}_greedy": distinct_n(answers, n) for n in (1, 2, 3)}
        return found | {name: None if math.isnan(value) else value for name, value in distinct.items()}


def _scores(item: Item, said: dict[str, str]) -> dict[str, float]:
    answers = list(said.values())
    rouge = dict(zip(said, rouge_l_scores(answers, [item.references] * len(answers)), strict=True))
    sampled = [value for way, value in rouge.items() if way != "greedy"]
    return {
        **{f"rouge_l_{way}": value for way, value in rouge.items()},
        **({"rouge_l_sampled": fmean(sampled)} if sampled else {}),
        "exact_match_greedy": float(exact_match(said["greedy"], item.references)),
        "words_greedy": float(num_words(said["greedy"])),
    }
