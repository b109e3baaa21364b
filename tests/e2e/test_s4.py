"""examples/s4_cnn_dailymail: its data keeps every summary, its recipes are the study's, its command runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from potstill.data.prepare import prepare_all
from potstill.recipe import Data, Recipe
from tests import tiny

FOLDER = Path(__file__).parents[2] / "examples" / "s4_cnn_dailymail"
METHODS = ("forward_kl", "reverse_kl", "jensen_shannon", "policy_gradient", "penalised_policy_gradient")
STEPS = ("sft_teacher", "sft_student", "sft_continued", *METHODS)
LIMIT = 8  # articles of each split, in a smoke


def module(name: str) -> ModuleType:
    """A module of the example, whose folder is on the path while it is imported and no longer."""
    sys.path.insert(0, str(FOLDER))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(FOLDER))


# --- Articles ---------------------------------------------------------------------------------------------------------


LIMITS = Data(path="rows.jsonl", template="none", max_prompt_tokens=100, max_response_tokens=96)  # a window of 160
WORDS = "the quick brown fox jumps over a lazy dog while Zürich sleeps"


def cut(tmp_path: Path, articles: list[tuple[str, str]], *, room_for_summary: bool) -> tuple[list[Any], dict[str, int]]:
    """Rows as potstill reads them, and the counts."""
    rows = [module("articles").Article(f"a{index}", *texts) for index, texts in enumerate(articles)]
    file = tmp_path / "rows.jsonl"
    tokenizer = tiny.tokenizer()
    counts = module("articles").write_rows(rows, tokenizer, LIMITS, file, room_for_summary=room_for_summary)
    return list(prepare_all(LIMITS.model_copy(update={"path": str(file)}), tokenizer)), counts


def test_a_long_article_loses_its_end_and_its_summary_nothing(tmp_path: Path) -> None:
    long, summary = " ".join([WORDS] * 20), "A fox jumps."
    rows, counts = cut(tmp_path, [(long, summary), ("A short one.", summary)], room_for_summary=True)
    kept = rows[0].prompt.removeprefix("summarize: ").removesuffix("\n")
    assert long.startswith(f"{kept} ")  # up to a word's end
    assert 90 <= len(rows[0].prompt_ids) <= 100  # as much of it as fits
    assert rows[1].prompt == "summarize: A short one.\n"
    assert [row.response for row in rows] == [summary, summary]
    assert not any(row.truncated for row in rows)
    assert (counts["articles"], counts["cut_articles"], counts["left_out"]) == (2, 1, 0)


def test_a_word_is_never_cut() -> None:
    """At whatever token the limit falls, also inside a word or a letter of several tokens."""
    long = " ".join([WORDS] * 10)
    kept = [module("articles").shortened(long, tiny.tokenizer(), "none", limit) for limit in range(20, 100)]
    assert all(long.startswith(f"{text} ") for text in kept)
    assert [len(text) for text in kept] == sorted(len(text) for text in kept)
    assert module("articles").shortened("x" * 500, tiny.tokenizer(), "none", 20) == ""


def test_an_article_makes_room_for_its_summary_but_not_in_the_test_split(tmp_path: Path) -> None:
    long, summary = " ".join([WORDS] * 20), "x" * 90
    (row,), _ = cut(tmp_path, [(long, summary)], room_for_summary=True)
    assert len(row.response_ids) == 91
    assert not row.truncated
    assert 60 <= len(row.prompt_ids) <= 160 - 91
    (blind,), _ = cut(tmp_path, [(long, summary)], room_for_summary=False)
    assert 90 <= len(blind.prompt_ids) <= 100


def test_a_summary_that_leaves_no_room_is_left_out_and_counted(tmp_path: Path) -> None:
    rows, counts = cut(tmp_path, [("An article.", "x" * 200), ("An article.", "y")], room_for_summary=True)
    assert [row.response for row in rows] == ["y"]
    assert (counts["articles"], counts["left_out"]) == (1, 1)


def test_rows_without_a_text_are_passed_over_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "some.csv"
    file.write_text('id,article,highlights\na,"One, two.",Three\nb,,Four\nc,Five\nd,Six,Seven\n')
    articles, unusable = module("articles").read_articles(file)
    assert [article.id for article in articles] == ["a", "d"]
    assert articles[0].text == "One, two."
    assert unusable == 2
    assert len(module("articles").read_articles(file, 1)[0]) == 1


def test_the_suggested_length() -> None:
    articles = module("articles")
    assert articles.suggested_max_new_tokens(list(range(1, 101))) == 95
    assert articles.suggested_max_new_tokens([5, 900, 7]) == 900
    assert articles.suggested_max_new_tokens([3] * 19 + [90]) == 3


# --- The table --------------------------------------------------------------------------------------------------------


def test_differences_are_taken_article_by_article() -> None:
    """A method that is a little better on every article differs for sure, however much the articles do."""
    easy_and_hard = [0.1, 0.9] * 20
    lines = {
        name: [{"rouge1": x + plus, "rouge2": x, "rougeL": x + plus, "prediction": "two words"} for x in easy_and_hard]
        for name, plus in (("base", 0.0), ("better", 0.01))
    }
    found = module("scores").summarised(lines, "base")
    assert found["better"]["rouge1"]["mean"] == pytest.approx(51)
    assert found["better"]["rouge1"]["low"] < 45
    assert found["better"]["difference"] == pytest.approx({"mean": 1, "low": 1, "high": 1})
    assert found["better"]["words"] == 2


def test_the_interval_is_that_of_a_mean() -> None:
    """Of 400 draws of a standard normal: half a width of 1.96 / 20."""
    values = np.random.default_rng(1).standard_normal(400)
    found = module("scores").interval(values)
    assert found["mean"] == pytest.approx(values.mean())
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


# --- The full-size recipes --------------------------------------------------------------------------------------------


def full(step: str) -> Recipe:
    return module("steps").recipe_of(step, {})


def test_the_full_recipes_differ_in_nothing_but_the_method() -> None:
    stages = [full(step).stage for step in STEPS]
    assert sorted(file.stem for file in (FOLDER / "full").glob("*.yaml")) == sorted(STEPS)
    for part in ("data", "optimizer", "batch", "budget", "checkpoint", "evaluation"):
        assert all(getattr(stage, part) == getattr(stages[0], part) for stage in stages), part
    optimizer, batch = stages[0].optimizer, stages[0].batch
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.schedule) == (5e-5, 0.1, "linear")
    assert batch.size == 2 * 96
    assert round(optimizer.warmup_fraction * stages[0].budget.steps) == 200


@pytest.mark.parametrize("step", METHODS)
def test_every_method_starts_from_the_same_student_with_the_same_teacher(step: str) -> None:
    recipe = full(step)
    assert (recipe.run, recipe.baseline) == (step, "none")
    assert recipe.stage.student.model == "runs/sft_student/student"
    assert recipe.stage.teacher.model == "runs/sft_teacher/student"


def test_the_losses_are_the_study_s() -> None:
    terms = {step: {t.objective.name: t for s in full(step).stage.streams for t in s.terms} for step in METHODS}
    weights = {step: {name: term.coefficient for name, term in found.items()} for step, found in terms.items()}
    for step in METHODS[:3]:
        assert weights[step] == {step: 0.5, "cross_entropy": 0.5}
        assert terms[step][step].objective.temperature == 0.9
    policy = {"policy_gradient": 0.5, "cross_entropy": 0.5}
    penalties = {"unlikelihood": 0.5 * 0.1, "embedding_similarity": 0.5 * 0.1, "entropy": -0.5 * 0.01}
    assert weights["policy_gradient"] == policy
    assert weights["penalised_policy_gradient"] == pytest.approx(policy | penalties)
    source = full("policy_gradient").stage.streams[0].source
    assert (source.temperature, source.policy.teacher_share, source.max_new_tokens) == (0.9, 0.5, 80)


# --- The command ------------------------------------------------------------------------------------------------------


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    start = [sys.executable, str(FOLDER / "s4.py"), *arguments]
    return subprocess.run(start, env=environment, capture_output=True, text=True, timeout=280)


def s4(out: Path, data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command("--out", str(out), "--smoke", *arguments, POTSTILL_DATA=str(data))


@pytest.fixture(scope="module")
def smoke(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for part in ("cnn_dailymail", "stories260k"):
        if not (data_dir / part).is_dir():
            pytest.skip(f"needs {part} in {data_dir}")
    out = tmp_path_factory.mktemp("s4")
    done = s4(out, data_dir)
    assert done.returncode == 0, done.stderr
    assert "95% of the training summaries have at most" in done.stdout
    return out


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def weights(smoke: Path, step: str) -> str:
    return hashlib.sha256((smoke / "runs" / step / "student" / "model.safetensors").read_bytes()).hexdigest()


def test_every_method_changes_the_same_student(smoke: Path) -> None:
    """The steps are few, but each method's student is another, and none is the one it began from."""
    assert len({weights(smoke, step) for step in STEPS}) == len(STEPS)
    untouched = [(smoke / "runs" / step / "eval" / "student_before.json").read_text() for step in METHODS]
    assert len({json.loads(text)["forward_kl_nats"] for text in untouched}) == 1


def test_there_is_a_prediction_for_each_article_and_method(smoke: Path, data_dir: Path) -> None:
    articles, _ = module("articles").read_articles(data_dir / "cnn_dailymail" / "test.csv", LIMIT)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name in ("lead_3", *STEPS):
        rows = lines(smoke / "predictions" / f"{name}.jsonl")
        assert [row["id"] for row in rows] == [article.id for article in articles]
        for row, article in zip(rows, articles, strict=True):
            assert row["reference"] == article.highlights
            assert row["article"]
            assert article.text.startswith(row["article"])
            scores = scorer.score(row["reference"], row["prediction"])
            assert {key: row[key] for key in scores} == pytest.approx({k: s.fmeasure for k, s in scores.items()})


def test_the_table_is_that_of_the_predictions(smoke: Path) -> None:
    results = json.loads((smoke / "results.json").read_text())
    assert list(results["methods"]) == ["lead_3", *STEPS]
    for name, row in results["methods"].items():
        mean = 100 * np.mean([line["rougeL"] for line in lines(smoke / "predictions" / f"{name}.jsonl")])
        assert row["rougeL"]["mean"] == pytest.approx(mean)
        assert f"| {name} | {row['rouge1']['mean']:.2f} [" in (smoke / "results.md").read_text()
    assert results["methods"]["lead_3"]["rougeL"]["low"] > 0
    assert results["methods"]["forward_kl"]["forward_kl_nats"] < results["methods"]["sft_student"]["forward_kl_nats"]
    facts = results["facts"]
    assert facts["teacher"] == "stories260k, 260,032 parameters"
    assert facts["train"].startswith(f"{LIMIT} articles, {LIMIT} of them cut, 0 left out, 0 rows unusable")
    train = [json.loads((smoke / "runs" / step / "data.json").read_text()) for step in STEPS]
    assert {(run["truncated_responses"], run["skipped_long_prompts"]) for run in train} == {(0, 0)}
    assert (smoke / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_call_trains_and_writes_nothing_again_but_what_is_missing(smoke: Path, data_dir: Path) -> None:
    lost = smoke / "predictions" / "reverse_kl.jsonl"
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()}
    written, table = lost.read_bytes(), (smoke / "results.md").read_text()
    lost.unlink()
    done = s4(smoke, data_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("was done before") == len(STEPS)
    assert (lost.read_bytes(), (smoke / "results.md").read_text()) == (written, table)
    changed = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {lost, *(smoke / f"results.{suffix}" for suffix in ("md", "json", "png"))}


def test_other_settings_are_refused_in_the_same_folder(smoke: Path, data_dir: Path) -> None:
    done = s4(smoke, data_dir, "--student-layers", "3")
    assert done.returncode == 1
    assert "begun with other settings" in done.stderr


def test_the_dry_run_shows_the_full_size_without_weights_or_a_network(tmp_path: Path) -> None:
    done = command("--full", "--dry-run", HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("method: ") == len(STEPS)
    assert "# student: gpt2-medium, 354,823,168 parameters" in done.stdout
    assert done.stdout.count("# student: runs/sft_student/student, 124,439,808 parameters") == 1 + len(METHODS)
    assert done.stdout.count("# tokens per step, at most: data 196,608") == 6  # 192 x 1024
    assert done.stdout.count(f"rollouts {192 * (896 + 80):,}, data 196,608") == 2
    memory = 4 * (4 * 124_439_808 + 354_823_168) / 2**30
    assert done.stdout.count(f"not counted: {memory:.2f} GiB") == len(METHODS)
    assert command("--dry-run").returncode == 2
