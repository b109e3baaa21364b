"""What each model writes to the test articles, one file for each, with ROUGE against the highlights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from articles import Article
from rouge_score.rouge_scorer import RougeScorer

from potstill.data.prepare import prepare_all
from potstill.evaluation.generation import answer
from potstill.models.families import Causal
from potstill.models.loading import load
from potstill.recipe import Data, Evaluation
from potstill.run import RUNS, Run, read_jsonl, write_text

SCORES = ("rouge1", "rouge2", "rougeL")
START_CHARS = 200  # of an article, in the predictions file


def greedy_summaries(step: str, file: Path, data: Data, settings: Evaluation) -> dict[str, str]:
    """What a step's student writes to each row of a file, by id.

    Args:
        step: whose run is in the current folder.
        file: rows of prompts; every one is answered.
        data: limits and template.
        settings: ``max_new_tokens`` and ``batch_size``.
    Raises: SystemExit where a row cannot be used: all models are to be compared on the same articles.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load(str(Run(RUNS / step).student), device=device)
    rows = prepare_all(data.model_copy(update={"path": str(file), "heldout": None}), loaded.tokenizer)
    wanted = sum(1 for _ in read_jsonl(file))
    if len(rows) != wanted:
        raise SystemExit(f"{file}: {wanted - len(rows)} of its {wanted} rows cannot be used; mend them and begin again")
    texts = answer(Causal(loaded.model), loaded.tokenizer, rows, settings, temperature=0, seed=0).texts
    return {row.example_id: text for row, text in zip(rows, texts, strict=True)}


def write_predictions(file: Path, articles: Sequence[Article], predictions: dict[str, str]) -> None:
    """A line an article: its id and beginning, the reference, the prediction, and ROUGE F, with stemming, 0 to 1."""
    scorer = RougeScorer(list(SCORES), use_stemmer=True)
    lines = []
    for article in articles:
        written = predictions[article.id]
        scores = scorer.score(article.highlights, written)
        line = {
            "id": article.id,
            "article": article.text[:START_CHARS],
            "reference": article.highlights,
            "prediction": written,
            **{name: scores[name].fmeasure for name in SCORES},
        }
        lines.append(json.dumps(line) + "\n")
    write_text(file, "".join(lines))
