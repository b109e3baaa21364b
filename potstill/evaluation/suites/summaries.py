"""Summaries: ROUGE of a greedy summary, beside that of the article's first three sentences."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.data.catalogue.item import Item
from potstill.evaluation.metrics.rouge import rouge_scores
from potstill.evaluation.metrics.summaries import lead, summary_figures
from potstill.evaluation.suites.scoring import ByPrimary, mean_scores
from potstill.evaluation.suites.subject import Subject
from potstill.evaluation.suites.suite import Row, Scores, Settings, row_of


class Summaries(ByPrimary):
    """ROUGE-1, -2 and -L (stemmed F-measure x 100), length, compression and novelty; beside them ``lead_3``'s ROUGE.

    The lead is taken of the article as it stands in the row, uncut as far as the prompt had room for it.
    """

    version = 1
    shortens = True
    headline: tuple[str, ...] = ("rouge1", "rouge2", "rougeL", "lead_3_rougeL", "words")
    primary = "rougeL"

    def ask(self, subject: Subject, items: Sequence[Item], settings: Settings) -> list[Row]:
        prompts = settings.framed(items)
        decoding = subject.decoding(settings.max_new_tokens, temperature=0.0, no_repeat_ngram=settings.no_repeat_ngram)
        written = subject.write(prompts, [item.id for item in items], decoding, seed=0)
        return [
            row_of(item, prompt, {"greedy": text}, _scores(item, text))
            for item, prompt, text in zip(items, prompts, written, strict=True)
        ]

    def scores(self, rows: Sequence[Row], settings: Settings) -> Scores:
        return mean_scores(rows)


def _scores(item: Item, text: str) -> dict[str, float]:
    article = item.content or item.prompt
    rouge = rouge_scores([text, lead(article)], [item.references] * 2)
    own = {name: values[0] for name, values in rouge.items()}
    leading = {f"lead_3_{name}": values[1] for name, values in rouge.items()}
    return own | leading | summary_figures(text, article)
