"""Pairs from results that a real evaluation wrote, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potstill.data.catalogue.item import Item
from potstill.errors import ConfigError, DataError
from potstill.evaluation.judge.pairs import make_pairs, read_pairs, write_pairs
from potstill.evaluation.suites import SUITES, Settings
from potstill.evaluation.suites.run import evaluate_suite
from potstill.evaluation.suites.subject import open_subject
from tests import tiny

ITEMS = [Item(f"rows.jsonl:{n}", f"Write about goat {n}.", (f"Goat {n} ate.", "Another.")) for n in range(1, 7)]
SETTINGS = Settings(max_prompt_tokens=60, max_new_tokens=6, seeds=(10,))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models' results on the same items, and one on others."""
    root, found = tmp_path_factory.mktemp("results"), {}
    for name, seed, items in (("one", 1, ITEMS), ("two", 2, ITEMS), ("fewer", 1, ITEMS[:3])):
        folder = tiny.save(tiny.llama(seed), root / "models" / name)
        suite = replace(SUITES["instruction"], settings=SETTINGS)
        identity = {"name": name, "fingerprint": name}
        made = evaluate_suite(lambda folder=folder: open_subject(str(folder)), identity, suite, items, root / "out")
        found[name] = made.folder
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_each_item_is_a_pair_of_what_was_said_and_the_first_reference(results: dict[str, Path], tmp_path: Path) -> None:
    pairs = make_pairs(results["one"])
    assert [pair.id for pair in pairs] == [item.id for item in ITEMS]
    for pair, item, row in zip(pairs, ITEMS, rows(results["one"]), strict=True):
        assert (pair.question, pair.theirs, pair.theirs_from) == (item.prompt, item.references[0], "reference")
        assert (pair.ours, pair.ours_from) == (row["predictions"]["greedy"], "one, greedy")
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    assert [pair for _, pair in read_pairs(tmp_path / "pairs.jsonl").values()] == pairs
    with pytest.raises(ConfigError, match="is not overwritten"):
        write_pairs(pairs, tmp_path / "pairs.jsonl")


def test_two_models_are_paired_by_item(results: dict[str, Path]) -> None:
    pairs = make_pairs(results["one"], results["two"], prediction="seed_10", seed=3)
    for pair, ours, theirs in zip(pairs, rows(results["one"]), rows(results["two"]), strict=True):
        assert (pair.ours, pair.theirs) == (ours["predictions"]["seed_10"], theirs["predictions"]["seed_10"])
        assert pair.theirs_from == "two, seed_10"
        first, second = (pair.ours, pair.theirs) if pair.ours_is_first else (pair.theirs, pair.ours)
        assert pair.prompt.index(f"\n{first}\nCLOSE FIRST") < pair.prompt.index(f"\n{second}\nCLOSE SECOND")
    assert pairs == make_pairs(results["one"], results["two"], prediction="seed_10", seed=3)
    other = make_pairs(results["one"], results["two"], prediction="seed_10", seed=4)
    assert {pair.prompt for pair in pairs}.isdisjoint(pair.prompt for pair in other)


def test_results_that_do_not_match_are_refused(results: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="are not of the same items"):
        make_pairs(results["one"], results["fewer"])
    with pytest.raises(ConfigError, match="compared with itself"):
        make_pairs(results["one"], results["one"])
    with pytest.raises(DataError, match=r"(?s)rows\.jsonl:1: there is no prediction 'seed_7'.*greedy, seed_10"):
        make_pairs(results["one"], prediction="seed_7")


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("settings.json", None, "is not a result"),
        ("rows.jsonl", None, "is not a result"),
        ("scores.json", None, "is not finished"),
        ("settings.json", "{", "settings.json is broken"),
        ("settings.json", "{}", "settings.json is broken"),
        ("rows.jsonl", "{\n", "rows.jsonl:1: not JSON"),
        ("rows.jsonl", "\n", "rows.jsonl has no rows"),
        ("rows.jsonl", '{"id": 3, "input": ""}\n', "rows.jsonl:1: id and input"),
        (
            "rows.jsonl",
            '{"id": "a", "input": "b", "references": ["c"], "predictions": {"greedy": {}}}\n',
            "rows.jsonl:1: there is no pred",
        ),
        ("rows.jsonl", '{"id": "a", "input": "b", "predictions": {"greedy": ""}}\n', "rows.jsonl:1: there is no ref"),
    ],
)
def test_a_broken_result_is_refused_by_name(
    results: dict[str, Path], tmp_path: Path, name: str, content: str | None, cause: str
) -> None:
    folder = shutil.copytree(results["one"], tmp_path / "copy")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=cause):
        make_pairs(folder)


def test_a_row_that_was_taken_away_is_named(results: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(results["two"], tmp_path / "copy")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(folder)[1:]))
    with pytest.raises(DataError, match=r"copy has no row 'rows\.jsonl:1'"):
        make_pairs(results["one"], folder)


def test_the_judge_reads_the_question_that_was_shortened_less(results: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(results["two"], tmp_path / "copy")
    cut = [row | {"input": row["input"][:5]} for row in rows(folder)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cut))
    for ours, theirs in ((folder, results["one"]), (results["one"], folder)):
        assert [pair.question for pair in make_pairs(ours, theirs)] == [item.prompt for item in ITEMS]


def test_a_suite_without_prose_is_refused(results: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(results["one"], tmp_path / "copy")
    told = json.loads((folder / "settings.json").read_text()) | {"protocol": "classification 1", "suite": "anli"}
    (folder / "settings.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match="anli, whose answers are not prose"):
        make_pairs(folder)


def test_a_pairs_file_that_was_changed_is_refused_by_line(results: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    write_pairs(make_pairs(results["one"]), file)
    lines = file.read_text().splitlines(keepends=True)
    for content, cause in (
        (lines[0] * 2, "pairs.jsonl:2: id 'rows.jsonl:1' stands at .*:1 already"),
        (lines[0].replace('"ours_is_first": ', '"ours_is_first": "" , "x": '), "pairs.jsonl:1: ours_is_first"),
        ("\n", "has no pairs"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=cause):
            read_pairs(file)
    with pytest.raises(DataError, match=r"(?s)there is no file .*judge export"):
        read_pairs(tmp_path / "other.jsonl")
