"""An encoder-decoder's curriculum and its distillation, whole, on rows of a few words: three rounds, then a teacher."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

import potstill
from potstill.evaluation.labels import label_scores
from potstill.run import Run
from tests import tiny

LABELS = ("entailment", "neutral", "contradiction")
SMALL: dict[str, Any] = {
    "batch": 4,
    "budget": {"steps": 2},
    "checkpoint": {"every": 1},
    "evaluation": {"max_examples": 4, "generate_examples": 4, "max_new_tokens": 6, "num_beams": 2},
}


def rows(folder: Path, number: int, count: int = 24) -> str:
    """Rows of a round; one in four has no reason."""
    file = folder / f"round-{number}.jsonl"
    lines = []
    for at in range(count):
        row = {"prompt": f"The dog saw {at} hats in round {number}. Is it so?", "response": LABELS[at % 3]}
        lines.append(row | ({"rationale": f"It saw {at}."} if at % 4 else {}))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file.name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("anli")
    tiny.save(tiny.t5(1), folder / "student")
    tiny.save(tiny.t5(2), folder / "teacher")
    settings = {f"{stage}.{key}": value for stage in ("r1", "r2", "r3", "minillm") for key, value in SMALL.items()}
    rollout = {"minillm.streams.0.source.max_new_tokens": 6, "device": "cpu", "dtype": "float32"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        train = [rows(folder, number) for number in (1, 2, 3)]
        models = {"student": "student", "teacher": "teacher", "train": train, "heldout": [None] * 3}
        made = potstill.train("anli_minillm", **models, **settings, **rollout)
        return Run(made.path.resolve())
    finally:
        os.chdir(before)


def test_every_stage_is_trained_and_measured(run: Run) -> None:
    assert [stage.path.name for stage in run.stages] == ["1-r1", "2-r2", "3-r3", "4-minillm"]
    for stage in run.stages:
        assert stage.read("cost")["steps"] == 2
        measured = stage.evaluations()["student_after"]
        assert 0 <= measured["accuracy_low"] <= measured["accuracy"] <= measured["accuracy_high"] <= 1
        assert "rationale_rouge_l" in measured
        assert any("validation/accuracy" in line for line in stage.metrics())
    assert "teacher" in run.stages[-1].evaluations()
    assert [set(stage.evaluations()) for stage in run.stages[:3]] == [{"student_before", "student_after"}] * 3


def test_the_loss_is_the_labels_and_the_reasons_by_their_shares(run: Run) -> None:
    for stage, share in zip(run.stages[:3], (0.9, 0.9, 0.8), strict=True):
        steps = [line for line in stage.metrics() if "train/loss" in line]
        for line in steps:
            label, reason = line["train/data/label_nats"], line["train/data/reason_nats"]
            assert line["train/loss"] == pytest.approx(share * label + (1 - share) * reason)
            assert line["select/data/label_share"] + line["select/data/reason_share"] == pytest.approx(1)
        assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
        assert steps
    losses = [line["train/loss"] for line in run.stages[-1].metrics() if "train/loss" in line]
    assert losses
    assert all(map(math.isfinite, losses))


def test_accuracy_is_of_the_answers_that_were_kept(run: Run) -> None:
    """Scored again from the rows: the text before the colon against the row's label."""
    for stage in run.stages:
        kept = stage.rows("student_after")
        texts, golds = ([row["predictions"]["greedy"] for row in kept], [row["references"][0] for row in kept])
        own = [float(text.split(":")[0].strip() == gold.split(":")[0]) for text, gold in zip(texts, golds, strict=True)]
        assert [row["scores"]["accuracy"] for row in kept] == own
        assert label_scores(texts, golds, accuracy="exact", target="label_then_rationale")["accuracy"] == own


def test_the_last_stage_is_measured_on_rows_that_the_third_round_held_out(run: Run) -> None:
    *_, third, last = run.stages
    assert [row["id"] for row in last.rows("student_after")] == [row["id"] for row in third.rows("student_after")]
    assert third.read("data")["splits"]["heldout"]["rows"] == last.read("data")["splits"]["heldout"]["rows"]


def test_the_table_says_what_each_stage_was_trained_on(run: Run) -> None:
    page = run.report_file.read_text()
    for name in ("round-1.jsonl", "round-2.jsonl", "round-3.jsonl"):
        assert name in page
