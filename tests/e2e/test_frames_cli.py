"""A student trained with words before its prompts, asked with and without them by commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from potstill import cli
from tests.e2e.conftest import SMALL, as_arguments

TRAIN = ["train", "kd", *as_arguments(SMALL | {"data.prefix": "predict: ", "budget.steps": 2}), "run=first"]
SUITE = ["--suite", "classification", "--data", "own.jsonl", "--max-new-tokens", "3", "--device", "cpu"]
FRAMES = ["--frame", "predict: {prompt}", "--frame", "{prompt} Answer:"]


def test_frames_are_given_to_evaluate_and_compare(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potstill", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    rows = [{"prompt": f"Who ate hat {n}?", "options": ["fox", "goat"], "response": "goat"} for n in range(2)]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call(*TRAIN)[0] == 0
    code, _, err = call("evaluate", "first", "teacher", *SUITE)
    said = [line for line in err.splitlines() if "trained with words" in line]
    assert code == 0
    assert len(said) == 1
    assert said[0].startswith("first: ")
    assert said[0].endswith("--frame 'predict: {prompt}'")
    code, out, err = call("evaluate", "first", *SUITE, *FRAMES, "--format", "json")
    (told,) = json.loads(out)
    assert code == 0
    assert "trained with words" not in err
    assert list(told["scores"]["accuracy_likelihood_by_frame"]) == FRAMES[1::2]
    code, out, err = call("compare", "first", *SUITE, *FRAMES)
    assert code == 0
    assert "first" in out
    assert "trained with words" not in err
    assert (
        len([*Path("evaluations").iterdir()]) == 5
    )  # two without frames; with them first, its teacher, and what it was cut to
    for arguments, what in (
        (["evaluate", "first", *SUITE, "--frame", "predict: "], "has {prompt} 0 times"),
        (["evaluate", "first", "--data", "own.jsonl", *FRAMES], "--frame is for suites, and none is named"),
        (["evaluate", "first", *SUITE, "--set", "data.prefix=x"], "--set is not for suites"),
        (["evaluate", "first", "--data", "own.jsonl", "--set", "budget.steps=3"], "--set budget.steps=3 is not about"),
        (["evaluate", "first", "--data", "own.jsonl", "--set", "data.prefx=x"], "data.prefx: unknown key"),
        (["compare", "first", *FRAMES], "--frame is for suites, and none is named"),
    ):
        code, _, err = call(*arguments)
        assert code == 2
        assert what in err
