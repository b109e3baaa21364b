"""Decisions over several reviews: which one holds, what takes it back, and how the file names a review."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.annotation.decisions import name_of, read_decisions, shown_in, taken_over, write_decisions
from potstill.annotation.review import Key, Verdict

A: Key = ("a", 0)
DROP, KEEP, NOTHING, EDITED = (
    Verdict(decision, edited, "0" * 16, "somewhere")
    for decision, edited in (("drop", ""), ("keep", ""), ("", ""), ("", "«words»"))
)


def after(*applied: tuple[str, Verdict]) -> tuple[str, str] | None:
    """What is decided about ``a`` once these reviews were applied, in their order."""
    decisions: dict[Key, Verdict] = {}
    for review, verdict in applied:
        decisions = taken_over(decisions, {A: verdict}, review)
    return (decisions[A].decision, decisions[A].edited) if A in decisions else None


def test_the_review_applied_last_has_the_last_word() -> None:
    assert after(("one", DROP), ("two", KEEP)) == ("keep", "")
    assert after(("one", DROP), ("two", KEEP), ("one", DROP)) == ("drop", "")
    assert after(("one", DROP), ("two", EDITED)) == ("", "«words»")


def test_an_empty_verdict_takes_back_what_its_own_review_said_and_no_more() -> None:
    assert after(("one", DROP), ("one", NOTHING)) is None
    assert after(("one", DROP), ("two", NOTHING)) == ("drop", "")
    assert after(("one", DROP), ("two", DROP), ("one", NOTHING)) is None
    assert after(("one", DROP), ("two", KEEP), ("one", NOTHING)) == ("keep", "")


def test_what_a_further_review_shows_can_be_taken_back_there() -> None:
    decisions = shown_in(taken_over({}, {A: DROP}, "one"), "two")
    assert taken_over(decisions, {A: NOTHING}, "two") == {}
    assert taken_over(decisions, {}, "two") == decisions  # its row was taken out


def test_decisions_come_back_from_their_file(tmp_path: Path) -> None:
    decisions = taken_over({}, {A: EDITED, ("=b", 1): DROP}, "one")
    write_decisions(tmp_path / "d.jsonl", decisions)
    found = read_decisions(tmp_path / "d.jsonl")
    assert [(key, one.decision, one.edited, one.sha256, one.reviews) for key, one in found.items()] == [
        (A, "", "«words»", "0" * 16, ("one",)),
        (("=b", 1), "drop", "", "0" * 16, ("one",)),
    ]
    assert found[A].where == f"{tmp_path / 'd.jsonl'}:1"
    assert read_decisions(tmp_path / "none.jsonl") == {}


def test_a_review_has_one_name_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    assert name_of(Path("sub/r.csv"), Path("out.jsonl")) == "sub/r.csv"
    monkeypatch.chdir(tmp_path / "sub")
    assert name_of(Path("r.csv"), tmp_path / "out.jsonl") == "sub/r.csv"
