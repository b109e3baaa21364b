"""The review file: what a person reads in it, that what they decide comes back, and that nothing else does."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potstill.annotation.decisions import reviewed
from potstill.annotation.filters import CHANGING, FILTERS, Sieved, Step, sieved
from potstill.annotation.reading import Annotation
from potstill.annotation.review import decided, read_review, write_review
from potstill.annotation.summary import summary
from potstill.errors import ConfigError, DataError
from tests.unit.annotation.asking_tiny import annotate, lines, write

SHORT = Step("too_short", FILTERS["too_short"])


def said(name: str, rationale: str | None = "It is so.", **other: Any) -> Annotation:
    return Annotation(name, 0, f"the prompt of {name}", "yes", **({"rationale": rationale} | other))


FOUND = [
    sieved(said("a"), [SHORT]),
    sieved(said("b", "no"), [SHORT]),
    sieved(said("=1+1", '@sum(A1), "quoted"\nand more'), [SHORT]),
    sieved(said("d", None, unread="nothing was written"), [SHORT]),
    sieved(said("e", "as people say", origin="human"), [SHORT]),
]


def rows(file: Path) -> list[dict[str, str]]:
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    with open(file, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def save(file: Path, changed: list[dict[str, str]]) -> None:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in changed))
        return
    with open(file, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, changed[0])
        writer.writeheader()
        writer.writerows(changed)


def edited(file: Path, **changes: dict[str, str]) -> Path:
    """The review with changes to the rows of these numbers: r0, r1 and so on."""
    there = rows(file)
    for name, change in changes.items():
        there[int(name[1:])] |= change
    save(file, there)
    return file


@pytest.fixture(params=["review.csv", "review.jsonl"])
def review(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_review(tmp_path / request.param, FOUND, {})
    return tmp_path / str(request.param)


def kept(review: Path, found: list[Sieved] = FOUND) -> dict[str, tuple[str | None, str]]:
    verdicts = read_review(review, found)
    after = [decided(one, verdicts) for one in found]
    return {one.id: (one.rationale, one.origin) for one in after if one}


def test_a_person_sees_what_was_kept_and_what_was_dropped_and_why(review: Path) -> None:
    there = rows(review)
    assert [row["dropped_by"] for row in there] == ["", "too_short", "", "unread"]
    assert there[1]["why"] == "fewer than 5 characters"
    assert (there[0]["prompt"], there[0]["gold"], there[0]["rationale"]) == ("the prompt of a", "yes", "It is so.")
    assert {row["verdict"] + row["edited"] for row in there} == {""}


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    write_review(tmp_path / "r.csv", FOUND, {})
    assert (rows(tmp_path / "r.csv")[2]["id"], rows(tmp_path / "r.csv")[2]["rationale"][:2]) == ("'=1+1", "'@")


def test_an_untouched_review_changes_nothing(review: Path) -> None:
    assert kept(review) == {
        "a": ("It is so.", "teacher"),
        "=1+1": ('@sum(A1), "quoted"\nand more', "teacher"),
        "e": ("as people say", "human"),
    }


def test_decisions_come_back(review: Path) -> None:
    changes = {"r0": {"verdict": "drop"}, "r1": {"verdict": " Keep "}, "r2": {"edited": "-it is «so»: 好"}}
    edited(review, **changes, r3={"verdict": "keep", "edited": "written by hand"})
    assert kept(review) == {
        "b": ("no", "teacher"),
        "=1+1": ("-it is «so»: 好", "human-edited"),
        "d": ("written by hand", "human-edited"),
        "e": ("as people say", "human"),
    }


def test_rows_that_were_taken_out_stay_as_they_are(review: Path) -> None:
    save(review, rows(review)[1:2])
    assert set(kept(review)) == {"a", "=1+1", "e"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "maybe"}, "'verdict' is 'maybe'"),
        ({"verdict": "drop", "edited": "words"}, "has words in 'edited'"),
        ({"sha256": "0" * 16}, "a review of other annotations"),
        ({"id": "z"}, "a review of other annotations"),
        ({"sample": "x"}, "'sample' is no number"),
    ],
)
def test_what_cannot_be_meant_is_named(review: Path, change: dict[str, str], message: str) -> None:
    edited(review, r0=change)
    with pytest.raises(DataError, match=message) as caught:
        read_review(review, FOUND)
    assert caught.value.cause.startswith(f"{review}:{2 if review.suffix == '.csv' else 1}: ")


def test_what_was_never_read_cannot_be_kept_as_it_is(review: Path) -> None:
    edited(review, r3={"verdict": "keep"})
    with pytest.raises(DataError, match="nothing could be read that can be kept"):
        read_review(review, FOUND)


def test_a_row_twice_is_refused(review: Path) -> None:
    save(review, [*rows(review), rows(review)[0]])
    with pytest.raises(DataError, match=r"stands at .* already"):
        read_review(review, FOUND)


def test_a_review_of_other_words_is_refused(review: Path) -> None:
    other = [sieved(said("a", "It is otherwise."), [SHORT]), *FOUND[1:]]
    with pytest.raises(DataError, match="a review of other annotations"):
        read_review(review, other)
    with pytest.raises(DataError, match="a review of other annotations"):
        read_review(review, FOUND[1:])


def test_a_verdict_is_about_the_words_that_were_shown_behind_whatever_filters(tmp_path: Path) -> None:
    cut = said("a", "Output: It ate. It sl", finished=False)
    strip, shorten, drop = (
        Step(name, FILTERS[name]) for name in ("strip_prefix", "incomplete_last_sentence", "unfinished")
    )
    shown_as = {"It ate.": [strip, shorten], "It ate. It sl": [strip], "Output: It ate.": [shorten]}
    for number, (words, steps) in enumerate(shown_as.items()):
        file = tmp_path / f"{number}.csv"
        write_review(file, [sieved(cut, steps)], {})
        edited(file, r0={"verdict": "keep"})
        for now in ([], [shorten, strip], [drop]):
            assert kept(file, [sieved(cut, now)]) == {"a": (words, "teacher")}


@pytest.mark.parametrize("name", sorted(set(FILTERS) - set(CHANGING)))
def test_no_other_filter_changes_words(name: str) -> None:
    for words in ("Output: no no no no no no no.", "It ate. It ate. yes nli It sl", "no"):
        one = said("a", words, finished=False, label="no")
        assert FILTERS[name](one) is one or isinstance(FILTERS[name](one), str)


@pytest.mark.parametrize("change", [{"label": "no"}, {"gold": "no"}, {"prompt": "another"}])
def test_a_review_of_the_same_words_about_something_else_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    own = said("a", label="yes", asks_label=True)
    write_review(tmp_path / "r.csv", [sieved(own, [SHORT])], {})
    with pytest.raises(DataError, match="a review of other annotations"):
        read_review(tmp_path / "r.csv", [sieved(replace(own, **change), [SHORT])])  # type: ignore[arg-type]


def test_a_missing_column_is_named(review: Path) -> None:
    save(review, [{name: value for name, value in row.items() if name != "edited"} for row in rows(review)])
    with pytest.raises(DataError, match="missing field 'edited'"):
        read_review(review, FOUND)


@pytest.mark.parametrize(("words", "refused"), [("no", False), ("perhaps", True)])
def test_an_edited_label_is_one_of_the_options(tmp_path: Path, words: str, refused: bool) -> None:
    found = [sieved(said("a", None, mode="label", label="yes", options=("yes", "no"), asks_label=True), [])]
    write_review(tmp_path / "r.csv", found, {})
    edited(tmp_path / "r.csv", r0={"edited": words})
    if refused:
        with pytest.raises(DataError, match="none of the options"):
            read_review(tmp_path / "r.csv", found)
    else:
        after = decided(found[0], read_review(tmp_path / "r.csv", found))
        assert after is not None
        assert (after.label, after.rationale, after.origin) == ("no", None, "human-edited")


def test_words_that_could_explain_no_label_are_refused(tmp_path: Path) -> None:
    """Edited, it would be trained on as a rationale of nothing."""
    found = [sieved(said("a", unread="it does not say 'So the answer is'", asks_label=True), [])]
    write_review(tmp_path / "r.csv", found, {})
    edited(tmp_path / "r.csv", r0={"edited": "It is so, since it rains."})
    with pytest.raises(DataError, match="it has no label that edited words could explain"):
        read_review(tmp_path / "r.csv", found)


def test_what_a_filter_left_out_is_not_counted_as_a_persons_decision(review: Path) -> None:
    edited(review, r0={"verdict": "drop"}, r3={"edited": "written by hand"})
    verdicts = read_review(review, FOUND)
    after = [kept for one in FOUND if (kept := decided(one, verdicts)) is not None]
    told = reviewed(verdicts, FOUND, after)
    assert [told[name] for name in ("edited", "brought_back", "dropped")] == [1, 1, 1]


def test_the_command_writes_takes_over_and_does_not_forget(here: Path) -> None:
    wanted = ("--want", "rationale", "--filters", "none")
    annotate(*wanted, "--review", "r.csv")
    edited(Path("r.csv"), r0={"verdict": "drop"}, r1={"edited": "Goats eat hats."})
    with pytest.raises(ConfigError, match="may hold what a person decided"):
        annotate(*wanted, "--review", "r.csv")
    card = annotate(*wanted, "--apply", "r.csv")
    assert [line["id"] for line in lines()] == ["b", "c", "d"]
    assert (lines()[0]["rationale"], lines()[0]["origin"]) == ("Goats eat hats.", "human-edited")
    told = {name: card["review"][name] for name in ("file", "edited", "brought_back", "dropped")}
    assert told == {"file": "r.csv", "edited": 1, "brought_back": 0, "dropped": 1}
    annotate(*wanted)
    assert [(line["id"], line["origin"]) for line in lines()][:2] == [("b", "human-edited"), ("c", "teacher")]
    Path("out.decided.jsonl").unlink()
    with pytest.raises(ConfigError, match="would lose it"):
        annotate(*wanted)
    assert lines()[0]["origin"] == "human-edited"
    Path("out.jsonl").unlink()
    assert annotate(*wanted)["review"] is None
    assert [line["origin"] for line in lines()] == ["teacher"] * 4


RATIONALE = ("--want", "rationale", "--filters", "none")


def verdicts(file: str) -> list[str]:
    return [row["verdict"] + row["edited"] for row in rows(Path(file))]


def test_what_was_decided_holds_until_a_later_review_says_otherwise(here: Path) -> None:
    annotate(*RATIONALE, "--review", "r.csv")
    edited(Path("r.csv"), r0={"verdict": "drop"}, r1={"edited": "Goats eat hats."})
    annotate(*RATIONALE, "--apply", "r.csv")
    card = annotate(*RATIONALE, "--review", "r2.csv")
    assert verdicts("r2.csv") == ["drop", "Goats eat hats.", "", ""]
    assert (card["review"]["file"], card["review"]["decisions"], card["counts"]["kept"]) == ("r.csv", 2, 3)
    edited(Path("r2.csv"), r0={"verdict": ""}, r2={"verdict": "drop"})
    card = annotate(*RATIONALE, "--apply", "r2.csv", "--review", "r3.csv")
    assert verdicts("r3.csv") == ["", "Goats eat hats.", "drop", ""]
    assert [line["id"] for line in lines()] == ["a", "b", "d"]
    assert (card["review"]["file"], card["review"]["edited"], card["review"]["dropped"]) == ("r2.csv", 1, 1)
    with pytest.raises(ConfigError, match="for a further review choose another name"):
        annotate(*RATIONALE, "--apply", "r3.csv", "--review", "r3.csv")


def test_a_review_takes_back_what_it_said_and_leaves_what_another_says(here: Path) -> None:
    annotate(*RATIONALE, "--review", "anne.csv")
    annotate(*RATIONALE, "--review", "bert.jsonl")
    edited(Path("anne.csv"), r0={"verdict": "drop"}, r1={"verdict": "drop"})
    edited(Path("bert.jsonl"), r1={"verdict": "keep"}, r2={"verdict": "drop"})
    annotate(*RATIONALE, "--apply", "anne.csv")
    annotate(*RATIONALE, "--apply", "bert.jsonl")
    assert [line["id"] for line in lines()] == ["b", "d"]
    edited(Path("anne.csv"), r0={"verdict": ""}, r1={"verdict": ""})
    annotate(*RATIONALE, "--apply", str(here / "anne.csv"))  # named otherwise, and the same
    assert [line["id"] for line in lines()] == ["a", "b", "d"]


def test_a_person_is_not_overruled_by_later_filters_and_it_is_said(here: Path) -> None:
    annotate(*RATIONALE, "--review", "r.csv")
    words = lines()[0]["rationale"]
    edited(Path("r.csv"), r0={"verdict": "keep"}, r1={"edited": "Goats eat hats."}, r2={"verdict": "drop"})
    for more in (("--apply", "r.csv"), ()):
        card = annotate("--want", "rationale", "--filters", "unfinished", *more)
        told = [(line["id"], line["rationale"], line["origin"]) for line in lines()]
        assert told == [("a", words, "teacher"), ("b", "Goats eat hats.", "human-edited")]
        assert card["review"]["brought_back_from"] == {"unfinished": 2}
        assert "brought back from unfinished  2" in summary(card, Path("out.jsonl"), None)


def test_words_that_a_person_kept_stay_as_they_were_seen(here: Path) -> None:
    annotate(*RATIONALE, "--review", "r.csv")
    raw = lines("out.raw.jsonl")
    write("out.raw.jsonl", [raw[0] | {"text": "Output: it ate."}, *raw[1:]])
    with pytest.raises(DataError, match=r"r.csv:2: this is a review of other annotations"):
        annotate(*RATIONALE, "--apply", "r.csv")
    annotate(*RATIONALE, "--review", "r2.csv")
    edited(Path("r2.csv"), r0={"verdict": "keep"})
    card = annotate("--want", "rationale", "--filters", "strip_prefix", "--apply", "r2.csv")
    assert (lines()[0]["rationale"], card["review"]["kept_as_seen"]) == ("Output: it ate.", 1)
    assert "kept as a person saw it  1, which the filters would change" in summary(card, Path("out.jsonl"), None)
    annotate("--want", "rationale", "--filters", "strip_prefix", "--review", "r3.csv")
    assert (rows(Path("r3.csv"))[0]["rationale"], verdicts("r3.csv")[0]) == ("Output: it ate.", "keep")
    write("out.raw.jsonl", [raw[0] | {"text": "It slept."}, *raw[1:]])
    with pytest.raises(DataError, match=r"out.decided.jsonl:1: 'a' was decided about when it had other words"):
        annotate(*RATIONALE)


def test_a_damaged_decision_is_named_and_a_review_that_is_not_there_is_said_before_asking(here: Path) -> None:
    with pytest.raises(DataError, match=r"there is no data file r.csv"):
        annotate(*RATIONALE, "--apply", "r.csv")
    assert not Path("out.raw.jsonl").exists()
    annotate(*RATIONALE, "--review", "r.csv")
    edited(Path("r.csv"), r0={"verdict": "drop"})
    annotate(*RATIONALE, "--apply", "r.csv")
    write("out.decided.jsonl", [lines("out.decided.jsonl")[0] | {"verdict": "perhaps"}])
    with pytest.raises(DataError, match=r"out.decided.jsonl:1: verdict: "):
        annotate(*RATIONALE)
