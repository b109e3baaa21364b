"""report.html: one file that shows a run, with no script in it and nothing loaded from anywhere.

What it shows was partly written by models and strangers. Three walls stand between that text and the page: every string
goes through ``clean_text``, then through Jinja's autoescape, and a Content-Security-Policy lets nothing run or load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from potstill.reporting import plots, routes, settings, stages, standings, tables
from potstill.reporting.comparison.notes import how_often_seen
from potstill.reporting.facts import Block, blocks
from potstill.reporting.panel import panel
from potstill.reporting.text import clean_text, one_line
from potstill.run import Run, write_text

MAX_SAMPLES = 100
OPEN_SAMPLES = 3  # the others are folded
MAX_CHARACTERS = 4000  # of one text


def write_report(run: Run) -> Path:
    """Write the run's report from its files, whole or not at all; what was not measured is said to be so."""
    write_text(run.report_file, render(run))
    return run.report_file


def render(run: Run) -> str:
    """The report as HTML; of a run of several stages, a page that leads to theirs."""
    return _of_stages(run) if run.stages else _of_one(run)


def _of_stages(run: Run) -> str:
    return environment().get_template("stages.html.j2").render(
        name=run.name,
        method=settings.method(run),
        verdict=[*tables.verdict(run.result), *routes.beside(run)],
        result=run.result.path.name,
        lines=stages.stage_lines(run),
        standings=standings.standings(run),
        written=[line.name for line in stages.stage_lines(run) if (run.path / line.folder / "report.html").exists()],
        recipe=settings.recipe_text(run),
    )  # fmt: skip


def _of_one(run: Run) -> str:
    return environment().get_template("report.html.j2").render(
        name=run.name,
        method=settings.method(run),
        verdict=tables.verdict(run),
        columns=tables.columns(run),
        models=tables.MODEL_NAMES,
        rows=list(tables.rows(run)),
        panel=panel(run),
        charts=_charts(run),
        samples=[_sample(sample) for sample in run.samples()[:MAX_SAMPLES]],
        num_samples=len(run.samples()),
        open_samples=OPEN_SAMPLES,
        recipe=settings.recipe_text(run),
        facts=_facts(run),
        measured_with=settings.measured_with(run),
        answers=settings.answers(run),
        how_often_seen=how_often_seen(run),
    )  # fmt: skip


def environment(*, autoescape: bool = True) -> jinja2.Environment:
    """The templates. ``autoescape`` is off only in the test that shows that it is needed."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("potstill.reporting", "templates"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _clean(value: Any) -> Any:
    """Every value on its way into the page; Markup is ours."""
    return clean_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _charts(run: Run) -> list[tuple[str, list[tuple[plots.Chart, Markup]]]]:
    """Groups of charts with their drawings, empty groups left out."""
    groups = {
        "Training": plots.training_charts(run),
        "Validation": plots.validation_charts(run),
        "Text": plots.text_charts(run),
        "Schedules": plots.schedule_charts(run),
        "Optimiser": plots.optimiser_charts(run),
    }
    return [(title, _drawn(title.lower(), charts)) for title, charts in groups.items() if charts]


def _drawn(prefix: str, charts: Sequence[plots.Chart]) -> list[tuple[plots.Chart, Markup]]:
    return [(chart, Markup(plots.svg(chart, f"{prefix}{index}"))) for index, chart in enumerate(charts)]


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    """One prompt with what each model answered, in the order of the table."""
    outputs = sample.get("outputs") or {}
    return {
        "id": str(sample.get("id", "")),
        "title": one_line(str(sample.get("prompt") or ""))[:120],
        "prompt": _cut(sample.get("prompt")),
        "reference": _cut(sample.get("reference")),
        "answers": [
            (tables.MODEL_NAMES[model], _cut(given.get("greedy")), _cut(given.get("sampled")))
            for model in tables.MODEL_NAMES
            if (given := outputs.get(model))
        ],
    }


def _cut(text: Any) -> str | None:
    """A text of bearable length; None where there is none."""
    if not isinstance(text, str) or len(text) <= MAX_CHARACTERS:
        return text if isinstance(text, str) else None
    return f"{text[:MAX_CHARACTERS]} [cut here: {len(text):,} characters, all of them in samples.jsonl]"


def _teacher_texts(run: Run) -> dict[str, Any]:
    """Counts of what the teacher wrote, by stream."""
    return {
        name: {key: card[key] for key in ("responses", "kept", "kept_response_tokens")}
        | {f"dropped, {reason}": count for reason, count in card["dropped"].items()}
        | {"writing_s": card["seconds"]}
        for name, card in run.teacher_texts().items()
    }


def _facts(run: Run) -> list[tuple[str, str, list[Block]]]:
    """Sections of plain facts: a heading, what they are, and their tables."""
    data = run.read("data")
    overlap = data.pop("overlap", {})
    texts = _teacher_texts(run)
    sections = (
        ("Student", "How the student was made.", run.read("student")),
        *([("Teacher's text", "What it wrote to train on, before training.", texts)] if texts else []),
        ("Data", "Rows read, used and left out.", data),
        ("Overlap", "How much of the held-out rows the training rows give away.", overlap),
        ("Cost", "Time is wall-clock time on the machine below.", run.read("cost")),
        ("Environment", "What the run ran on.", run.read("env")),
    )
    return [(title, about, list(blocks(content)) if content else []) for title, about, content in sections]
