"""results.json, results.md and results.png from the predictions: nobody types a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from summaries import SCORES

from potstill.evaluation.metrics.significance import RESAMPLES, bootstrap_interval
from potstill.run import read_jsonl, write_text

HEADINGS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
HELD_OUT = {"forward_kl_nats": "forward KL, nats", "perplexity": "perplexity"}
Lines = Sequence[Mapping[str, Any]]


def write_results(
    out: Path, methods: Sequence[str], against: str, facts: Mapping[str, Any], held_out: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the table and the figure of ``predictions/`` into a folder.

    Args:
        out: where ``predictions/<method>.jsonl`` are.
        methods: the rows of the table, in order.
        against: the method that all others are compared with, article by article.
        facts: what the figures depend on; printed above the table.
        held_out: what the runs measured themselves, by method; a method or a figure may be missing.
    """
    lines = {name: list(read_jsonl(out / "predictions" / f"{name}.jsonl")) for name in methods}
    results: dict[str, Any] = {"facts": dict(facts), "against": against, "methods": summarised(lines, against)}
    for name, row in results["methods"].items():
        row |= {key: held_out.get(name, {}).get(key) for key in HELD_OUT}
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(out / "results.md", as_markdown(results))
    draw(out / "results.png", results["methods"])


def summarised(lines: Mapping[str, Lines], against: str) -> dict[str, dict[str, Any]]:
    """Of each method the mean and 95% interval of every score and of its Rouge-L less that of ``against``, x 100;
    and ``words``, the mean length."""
    baseline = _values(lines[against], "rougeL")
    return {
        name: {score: interval(_values(rows, score)) for score in SCORES}
        | {"difference": interval(_values(rows, "rougeL") - baseline)}
        | {"words": fmean(len(row["prediction"].split()) for row in rows)}
        for name, rows in lines.items()
    }


def interval(values: Float[np.ndarray, " article"]) -> dict[str, float]:
    """Mean and 95% bootstrap interval over articles; the same articles are drawn for every method."""
    low, high = bootstrap_interval(values)
    return {"mean": float(values.mean()), "low": low, "high": high}


def as_markdown(results: Mapping[str, Any]) -> str:
    """The table, with what it depends on above it."""
    head = ("", *HEADINGS.values(), f"ROUGE-L less {results['against']}'s", "words", *HELD_OUT.values())
    rows = [
        (
            name,
            *(_shown(row[score]) for score in SCORES),
            _shown(row["difference"], "+"),
            f"{row['words']:.1f}",
            *("-" if row[key] is None else f"{row[key]:.3f}" for key in HELD_OUT),
        )
        for name, row in results["methods"].items()
    ]
    table = "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])
    facts = "\n".join(f"- {key}: {value}" for key, value in results["facts"].items())
    legend = (
        f"ROUGE F x 100, stemmed; in brackets 95% of {RESAMPLES} bootstrap resamples of the test articles. Forward KL "
        "from the fine-tuned teacher and perplexity are those of the runs, on highlights of validation articles."
    )
    return f"# Summaries of CNN/DailyMail\n\n{facts}\n\n{legend}\n\n{table}\n"


def draw(file: Path, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """A panel for each score: a point and its interval for each method."""
    figure = Figure(figsize=(11, 1.2 + 0.35 * len(methods)), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(SCORES), sharey=True), SCORES, strict=True):
        for at, row in enumerate(methods.values()):
            found = row[score]
            axes.plot([found["low"], found["high"]], [at, at], color="black", linewidth=1)
            axes.plot(found["mean"], at, "o", color="tab:blue", markersize=4)
        axes.set_yticks(range(len(methods)), list(methods))
        axes.set_xlabel(f"{HEADINGS[score]} F x 100, 95% interval")
    axes.invert_yaxis()  # shared: one call turns all
    figure.savefig(file, format="png", dpi=120)


def _values(rows: Lines, score: str) -> Float[np.ndarray, " article"]:
    return 100 * np.array([row[score] for row in rows])


def _shown(found: Mapping[str, float], sign: str = "") -> str:
    low, high = (f"{found[edge]:{sign}.1f}" for edge in ("low", "high"))
    return f"{found['mean']:{sign}.2f} [{low}, {high}]"
