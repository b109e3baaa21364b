"""Comparisons of made-up scores."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from potstill.reporting.comparison import Comparison
from potstill.reporting.comparison.samples import Answer, Sample
from potstill.reporting.comparison.table import Cost, Entry, Measure, Table, tabulate

TEACHER = Entry("a:teacher", "teacher", "teacher", None, None, 135e6, 269e6, 50.0)
UNTOUCHED = Entry("a:untouched", "untouched student", "untouched", None, None, 64e6, 127e6, 110.0)
SFT = Entry("a:sft", "first, equal-time SFT", "sft", "sft", Cost(60.0, 0, 9_000), 64e6, 127e6, 111.0)
FIRST = Entry("a:student", "first", "student", "kd", Cost(62.0, 5_000, 5_000), 64e6, 127e6, 112.0)
SECOND = Entry("b:student", "second", "student", "gkd", Cost(2400.0, 80_000, 5_000), 32e6, 64e6, 180.0)
ALL = (TEACHER, UNTOUCHED, SFT, FIRST, SECOND)
MEANS = {"a:teacher": 0.0, "a:untouched": 6.0, "a:sft": 2.5, "a:student": 2.0, "b:student": 1.2}


def scores(means: Mapping[str, float], *, noise: float = 0.1, num: int = 40) -> dict[str, dict[str, float]]:
    """Scores that scatter around each model's mean; the same for the same arguments."""
    drawn = {key: random.Random(f"{key}{noise}") for key in means}
    return {key: {f"row {i}": mean + drawn[key].gauss(0, noise) for i in range(num)} for key, mean in means.items()}


def measure(means: Mapping[str, float] = MEANS, *, noise: float = 0.1, **given: Any) -> Measure:
    """Forward KL, lower is better, between untouched student and teacher."""
    ends = {entry.key: (UNTOUCHED.key, TEACHER.key) for entry in (SFT, FIRST, SECOND)}
    settings: dict[str, Any] = {
        "name": "forward KL (nats)",
        "better": "lower",
        "between": ends,
        "told": "40 rows of a file",
    }
    return Measure(scores=scores(means, noise=noise), **(settings | given))


def agreement(**given: Any) -> Measure:
    """A percentage, higher is better."""
    means = {"a:teacher": 1.0, "a:untouched": 0.1, "a:sft": 0.40, "a:student": 0.41, "b:student": 0.3}
    return measure(means, noise=0.2, **({"name": "top-1 agreement", "better": "higher", "unit": "percent"} | given))


def table(*measures: Measure, entries: Sequence[Entry] = ALL, baseline: Entry | None = SFT) -> Table:
    return tabulate(entries, measures or (measure(), agreement()), baseline)


def sample(at: int = 0, text: str = "One batch at a time.", spread: float = 0.5, source: str = "dolly") -> Sample:
    answers = (Answer(TEACHER, text, None), Answer(FIRST, f"first: {text}", 0.75), Answer(SECOND, "", 0.25))
    return Sample(source, f"rows.jsonl:{at}", f"What does a pot still do? ({at})", ("In batches.",), answers, spread)


def comparison(made: Table | None = None, **given: Any) -> Comparison:
    parts: dict[str, Any] = {
        "notes": ("the trainings took from 60 to 2,400 s: none is at equal time",),
        "hygiene": ("Checkpoints were chosen on validation rows.",),
        "samples": tuple(sample(at) for at in range(5)),
    }
    return Comparison(made or table(), **(parts | given))


def renamed(text: str) -> tuple[Entry, ...]:
    """All models with the text in their name and method."""
    return tuple(replace(entry, name=f"name {text}", method=f"method {text}") for entry in ALL)


def hostile_comparison(text: str) -> Comparison:
    """The text in every place that a comparison takes text from, each after the name of its place."""
    entries = renamed(text)
    kinds = {"name": f"measure {text}", "told": f"told {text}"}
    flat = measure(dict.fromkeys(MEANS, 1.0), noise=0.5, **kinds)  # no gap: its name is in a footnote
    answers = tuple(Answer(entry, f"answer {text}", 0.5) for entry in entries)
    disputed = Sample(f"source {text}", f"id {text}", f"prompt {text}", (f"reference {text}",), answers, 0.5)
    made = table(measure(**kinds), flat, entries=entries, baseline=entries[2])
    return Comparison(made, (f"note {text}",), (f"hygiene {text}",), (disputed,))
