"""lm-eval itself, on a tiny model: the same likelihoods as our own suites, results kept, and every refusal in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from potstill.cli_harness import harness
from potstill.errors import ConfigError, DataError, ModelError
from potstill.evaluation import harness as harnessing
from potstill.evaluation.harness import HarnessResult, evaluate_tasks
from potstill.evaluation.suites.subject import open_subject
from potstill.run import LOCK
from tests import tiny

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'potstill[lm-eval]'")

ANIMALS = ("fox", "goat", "the lazy dog", "a small pot still")
COUNT = 12

Ask = Callable[..., list[HarnessResult]]


def rows() -> list[dict[str, Any]]:
    return [
        {"prompt": f"Who ate hat {n}?", "options": list(ANIMALS), "response": ANIMALS[n % len(ANIMALS)]}
        for n in range(COUNT)
    ]


def task_file(folder: Path, name: str, **changed: Any) -> None:
    """A task of options about rows.jsonl, or with other settings; JSON is YAML."""
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{options.index(response)}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 1.0},
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(json.dumps(config | changed), encoding="utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.llama(1), tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: rows.jsonl, and a task about it in tasks/."""
    import datasets
    import huggingface_hub.constants

    for settings in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    task_file(tmp_path / "tasks", "hats")
    return tmp_path


@pytest.fixture
def ask(here: Path, model: Path) -> Ask:
    def call(*tasks: str, models: tuple[Path, ...] = (model,), **settings: Any) -> list[HarnessResult]:
        names = [str(one) for one in models]
        return evaluate_tasks(names, tasks or ("hats",), root=here / "kept", tasks_dir=here / "tasks", **settings)

    return call


# --- Figures ----------------------------------------------------------------------------------------------------------


def test_likelihoods_and_accuracy_are_those_of_our_own_suites(ask: Ask, model: Path) -> None:
    (result,) = ask()
    subject = open_subject(str(model)).with_template("none")
    found = subject.nats([row["prompt"] for row in rows() for _ in ANIMALS], [*ANIMALS] * COUNT)
    right = right_by_character = 0
    for number, (row, ours) in enumerate(zip(result.rows, rows(), strict=True)):
        likely = [-nats for nats, _ in found[number * len(ANIMALS) : (number + 1) * len(ANIMALS)]]
        assert row["predictions"]["log_likelihoods"] == pytest.approx(likely, rel=1e-4)
        assert row["options"] == [f" {animal}" for animal in ANIMALS]
        gold = ANIMALS.index(ours["response"])
        hit, hit_by_character = likely.index(max(likely)) == gold, _longest(likely) == gold
        assert row["scores"] == {"acc": float(hit), "acc_norm": float(hit_by_character)}
        right, right_by_character = right + hit, right_by_character + hit_by_character
    figures = result.scores["figures"]["hats"]
    assert figures["acc"]["value"] == pytest.approx(right / COUNT)
    assert figures["acc_norm"]["value"] == pytest.approx(right_by_character / COUNT)
    share = right / COUNT
    assert figures["acc"]["stderr"] == pytest.approx((share * (1 - share) / (COUNT - 1)) ** 0.5)


def _longest(likely: list[float]) -> int:
    """The likeliest option for each character, which is how lm-eval normalises."""
    spread = [value / len(animal) for value, animal in zip(likely, ANIMALS, strict=True)]
    return spread.index(max(spread))


def test_every_model_sees_the_same_shots_whatever_was_asked_before(ask: Ask, here: Path, model: Path) -> None:
    task_file(here / "tasks", "shots", fewshot_split="test")
    other = tiny.save(tiny.llama(2), here / "other")
    one, two = ask("shots", models=(model, other), num_fewshot=2, limit=5)
    (again,) = ask("shots", models=(other,), num_fewshot=2, limit=5)
    assert [row["input"] for row in one.rows] == [row["input"] for row in two.rows]
    assert again.folder == two.folder != one.folder
    assert all(row["input"].count("Who ate hat") == 3 for row in one.rows)
    assert one.settings["members"]["shots"]["num_fewshot"] == 2
    (without,) = ask("shots", limit=5)
    assert {row["input"].count("Who ate hat") for row in without.rows} == {1}


def test_what_is_written_is_read_by_each_filter_in_one_row(ask: Ask, here: Path) -> None:
    filters = [
        {"name": "whole", "filter": [{"function": "take_first"}]},
        {
            "name": "word",
            "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}],
        },
    ]
    task_file(
        here / "tasks",
        "said",
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{response}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        filter_list=filters,
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    (result,) = ask("said", limit=3)
    assert [row["id"] for row in result.rows] == ["said/0", "said/1", "said/2"]
    assert all(set(row["scores"]) == {"exact_match,whole", "exact_match,word"} for row in result.rows)
    assert all(set(row["predictions"]["read"]) == {"whole", "word"} for row in result.rows)
    assert set(result.scores["figures"]["said"]) == {"exact_match,whole", "exact_match,word"}


# --- Kept -------------------------------------------------------------------------------------------------------------


def test_a_result_is_made_once_and_again_when_what_it_depends_on_changes(
    ask: Ask, here: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = ask(limit=4)
    same = here / "another name"
    same.symlink_to(model)
    with monkeypatch.context() as no_model:
        no_model.setattr(harnessing, "_open_model", lambda *_, **__: pytest.fail("asked again"))
        (second,) = ask(limit=4, models=(same,))
    assert (second.folder, second.scores) == (first.folder, first.scores)
    (longer,) = ask(limit=5)
    (here / "tasks" / "helper.py").write_text("X = 1\n", encoding="utf-8")
    (code,) = ask(limit=4)
    task_file(here / "tasks", "hats", doc_to_text="{{prompt}} Say")
    (config,) = ask(limit=4)
    (here / "rows.jsonl").write_text((here / "rows.jsonl").read_text().replace("hat 3", "hat three"), encoding="utf-8")
    (documents,) = ask(limit=4)
    folders = [one.folder for one in (first, longer, code, config, documents)]
    assert len(set(folders)) == len(folders)


def test_stdout_is_the_result_alone_even_where_lm_eval_prints(
    here: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mean = {"metric": "perplexity"}  # its standard error is drawn, and lm-eval says so on stdout
    task_file(here / "tasks", "likely", output_type="loglikelihood", doc_to_target=" {{response}}", metric_list=[mean])
    app = typer.Typer()
    app.command()(harness)
    told = [str(model), "--task", "likely", "--tasks-dir", "tasks", "--limit", "3", "--device", "cpu"]
    app([*told, "--format", "json"], standalone_mode=False)
    captured = capfd.readouterr()
    (found,) = json.loads(captured.out)
    assert found["scores"]["figures"]["likely"]["perplexity"]["stderr"] > 0
    assert found["scores"]["less_is_better"] == ["perplexity"]
    assert "bootstrapping" in captured.err
    app(told, standalone_mode=False)
    assert capfd.readouterr().out.startswith("likely: version 1.0; 3 documents; 0 examples before each;")


# --- Refused ----------------------------------------------------------------------------------------------------------


def test_a_task_file_that_is_not_yaml_is_named_with_its_line(ask: Ask, here: Path) -> None:
    (here / "tasks" / "broken.yaml").write_text("task: broken\ndataset_path: [json\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken.yaml:3: not a task file"):
        ask()


def test_data_that_is_not_here_is_said_with_the_task(ask: Ask, here: Path) -> None:
    task_file(here / "tasks", "far", dataset_path="nobody/no-such-data", dataset_kwargs=None)
    with pytest.raises(
        DataError, match=r"task far: its data is not here and not reachable.*no-such-data(.|\n)*HF_HOME"
    ):
        ask("far")
    task_file(here / "tasks", "lost", dataset_kwargs={"data_files": {"test": "lost.jsonl"}})
    with pytest.raises(DataError, match=r"task lost cannot be opened: .*lost.jsonl"):
        ask("lost")
    assert not [file for file in (here / "kept").rglob("*") if file.is_file() and file.name != LOCK]


def test_tasks_that_would_run_what_a_model_writes_are_refused(ask: Ask, here: Path) -> None:
    task_file(here / "tasks", "code", unsafe_code=True)
    with pytest.raises(ConfigError, match="task code runs the code that a model writes"):
        ask("code")


def test_a_folder_that_is_not_there_or_has_no_task_is_refused(ask: Ask, here: Path, model: Path) -> None:
    (here / "empty").mkdir()
    for folder, said in (("absent", "there is no such folder"), ("empty", "no .yaml file in it")):
        with pytest.raises(DataError, match=said):
            evaluate_tasks([str(model)], ["hats"], root=here / "kept", tasks_dir=here / folder)


def test_a_model_without_a_chat_template_is_not_asked_with_one(ask: Ask) -> None:
    with pytest.raises(ConfigError, match="its tokenizer has no chat template"):
        ask(chat=True)


def test_what_lm_eval_cannot_do_with_a_model_ends_in_words_and_leaves_nothing(ask: Ask, here: Path) -> None:
    generate = {"until": ["\n"], "max_gen_toks": 100_000}  # more than the model has positions
    metric = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    task_file(here / "tasks", "long", output_type="generate_until", generation_kwargs=generate, metric_list=metric)
    with pytest.raises(ModelError, match=r"task long, asked of .*: lm-eval stopped with"):
        ask("long")
    assert not [file for file in (here / "kept").rglob("*") if file.is_file() and file.name != LOCK]


@pytest.mark.slow
def test_an_unknown_task_is_answered_with_names_near_it(here: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no task 'helaswag'; near are .*hellaswag"):
        evaluate_tasks([str(model)], ["helaswag"], root=here / "kept")
