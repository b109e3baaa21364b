"""Labels and rationales, end to end: what each stream is given, and that at alpha 1 it is plain fine-tuning."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import potstill
from potstill.errors import DataError
from potstill.run import Run
from tests import tiny
from tests.e2e.conftest import SMALL

ASKED = {name: value for name, value in SMALL.items() if name not in ("teacher", "student.keep_layers")} | {
    "data": "reasons.jsonl",
    "evaluation.generate_examples": 4,
    "student": "teacher",
}


@pytest.fixture
def reasons(workspace: Path) -> Path:
    rows = [
        {
            "prompt": f"Is {at} even?",
            "response": "yes" if at % 2 == 0 else "no",
            "rationale": f"Half of it is {at / 2}.",
        }
        for at in range(40)
    ]
    file = workspace / "reasons.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def train(method: str = "step_by_step", **settings: Any) -> Run:
    return potstill.train(method, **(ASKED | settings))


def weights(run: Run) -> str:
    return hashlib.sha256((run.student / "model.safetensors").read_bytes()).hexdigest()


PREDICT = {"data.prefix": "predict: ", "evaluation.accuracy": "exact", "checkpoint.best_by": "accuracy"}


@pytest.mark.parametrize("settings", [{"alpha": 1.0}, {"variant": "standard"}])
def test_at_alpha_1_it_is_plain_fine_tuning_bit_for_bit(reasons: Path, settings: dict[str, Any]) -> None:
    same = {"optimizer.learning_rate": 3e-3}
    ours, plain = train(run="ours", **settings, **same), train("sft", run="plain", **PREDICT, **same)
    assert weights(ours) == weights(plain)
    ours_losses, plain_losses = (
        [line["train/loss"] for line in run.metrics() if "train/loss" in line] for run in (ours, plain)
    )
    assert ours_losses == plain_losses
    other = train(run="other", **same)
    assert weights(other) != weights(plain)


def test_labels_and_rationales_are_trained_on_and_measured(reasons: Path) -> None:
    run = train(run="both")
    counts = run.read("data")
    assert counts["views"]["rationale"]["asks"] == "rationale"
    assert counts["views"]["rationale"]["without_target"] == 0
    lines = [line for line in run.metrics() if "train/loss" in line]
    for line in lines:
        parts = line["train/label/cross_entropy_nats"], line["train/rationale/cross_entropy_nats"]
        assert line["train/loss"] == pytest.approx(0.5 * sum(parts), rel=1e-6)
    assert 0 <= run.evaluations()["student_after"]["accuracy"] <= 1
    assert {row["input"].split(" ")[0] for row in run.rows("student_after")} == {"predict:"}
    assert {row["references"][0] for row in run.rows("student_after")} <= {"yes", "no"}


def test_a_label_never_stands_in_the_rationale_stream_nor_the_other_way_round(reasons: Path) -> None:
    """Of the batches themselves: the tokens that have a loss are those of one text, and only of that."""
    from potstill import recipe_io
    from potstill.data.prepare import prepare
    from potstill.recipes import METHODS
    from potstill.sources.dataset import DatasetSource
    from potstill.sources.source import Share
    from potstill.streams import views_of

    stage = recipe_io.load("step_by_step", {"data": "reasons.jsonl"}, methods=METHODS).stage
    tokenizer = tiny.tokenizer()
    data = prepare(stage.data, tokenizer, streams=views_of(stage), seed=1)
    sources = {"label": data.train, "rationale": data.views["rationale"]}
    drawn = {name: DatasetSource(rows, seed=1, pad_id=0).next(Share(8, 8))[0] for name, rows in sources.items()}
    for name, batch in drawn.items():
        for row in range(8):
            response = tokenizer.decode(batch.response_ids[row][batch.response_mask[row]])
            prompt = tokenizer.decode(batch.prompt_ids[row][batch.prompt_mask[row]])
            number = int(prompt.split(" ")[2])
            label = "yes" if number % 2 == 0 else "no"
            wanted = {"label": label, "rationale": f"Half of it is {number / 2}."}[name]
            assert response == f"{wanted}<end>"
            assert prompt.startswith({"label": "predict: ", "rationale": "explain: "}[name])
    assert drawn["label"].example_ids == drawn["rationale"].example_ids


def test_rows_of_a_file_are_asked_as_the_student_was_trained(reasons: Path) -> None:
    """The figures of ``evaluate RUN --data`` are the run's own, prefix, accuracy and all; a setting asks otherwise."""
    other_rows = [f'{{"prompt": "Is {at} even?", "response": "no"}}\n' for at in range(41, 47)]
    Path("other.jsonl").write_text("".join(other_rows))
    run = train(run="both", **{"data.heldout": "other.jsonl"})
    own = run.read("eval/student_after")
    counts = {"evaluation.max_examples": own["num_examples"], "evaluation.generate_examples": 4}
    for name in ("both", "runs/both/student", run):
        found = potstill.evaluate(name, data="other.jsonl", device="cpu", **counts)
        same = [figure for figure in own if figure in found and figure != "tokens_per_s"]
        assert {"accuracy", "perplexity", "rouge_l"} <= set(same)
        assert {figure: found[figure] for figure in same} == pytest.approx({figure: own[figure] for figure in same})
    other = potstill.evaluate("both", data="other.jsonl", device="cpu", **counts, **{"data.prefix": "explain: "})
    assert other["perplexity"] != pytest.approx(own["perplexity"], rel=1e-6)
    answerless = potstill.evaluate("both", data="other.jsonl", device="cpu", answers=False, **counts)
    assert "accuracy" not in answerless
    assert answerless["perplexity"] == pytest.approx(own["perplexity"])


@pytest.mark.parametrize("variant", ["single_task", "shuffled_rationales", "input_reconstruction", "standard_twice"])
def test_every_control_runs(reasons: Path, variant: str) -> None:
    run = train(variant=variant, run=variant, **{"budget.steps": 2})
    assert "accuracy" in run.evaluations()["student_after"]


def test_a_teacher_may_teach_both_streams(reasons: Path) -> None:
    run = train(run="taught", kd_weight=0.5, teacher="teacher", **{"budget.steps": 2})
    keys = {key for line in run.metrics() for key in line}
    assert {"train/label/forward_kl_nats", "train/rationale/forward_kl_nats"} <= keys


def test_rows_without_rationales_are_refused_before_anything_is_trained(workspace: Path) -> None:
    with pytest.raises(DataError, match=r"none of the .* train rows has a rationale"):
        train(data="rows.jsonl", run="bare")
    assert not Path("runs/bare").exists()
