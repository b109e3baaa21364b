"""Overlap of held-out with train, on rows whose overlap is known."""

from __future__ import annotations

import random

from potstill.data.audit import near_duplicates
from potstill.data.examples import Example
from potstill.data.formats import example_of
from potstill.data.overlap import overlap
from potstill.data.reader import Row
from potstill.recipe import Data

NINE = "one two three four five six seven eight nine"


def row(prompt, response="r"):
    return Example(prompt, response, "id")


def test_duplicates_are_counted_whole_and_by_prompt():
    train = [row("a", "x"), row("b", "y"), row("b", "z")]
    found = overlap([row("a", "x"), row("b", "other"), row("c", "x"), row("A", "x")], train)
    assert (found["duplicate_prompts"], found["duplicate_rows"]) == (2, 1)


def test_eight_words_in_a_row_are_shared_whatever_their_case_and_punctuation():
    train = [row(f"before that, {NINE}!")]
    assert overlap([row(" ".join(NINE.split()[1:]))], train)["shared_8gram_prompt_share"] == 1.0
    assert overlap([row(NINE.upper().replace(" ", ", "))], train)["shared_8gram_prompt_share"] == 1.0


def test_seven_words_or_eight_out_of_order_are_not():
    train = [row(NINE)]
    seven = " ".join(NINE.split()[:7])
    assert overlap([row(f"{seven} x {seven}")], train)["shared_8gram_prompt_share"] == 0.0
    assert overlap([row(" ".join(reversed(NINE.split())))], train)["shared_8gram_prompt_share"] == 0.0


def test_the_share_is_of_held_out_rows_and_of_each_side_alone():
    train = [row(NINE, "r"), row("p", NINE)]
    heldout = [row("q", f"and {NINE}"), row("q", "r"), row(NINE, "s"), row(f"x {NINE}", NINE)]
    found = overlap(heldout, train)
    assert (found["shared_8gram_prompt_share"], found["shared_8gram_response_share"]) == (0.5, 0.5)


def test_a_run_of_words_does_not_go_over_the_end_of_a_row():
    half = NINE.split()
    train = [row(" ".join(half[:4])), row(" ".join(half[4:]))]
    assert overlap([row(NINE)], train)["shared_8gram_prompt_share"] == 0.0


def test_the_frame_that_every_row_shares_is_not_overlap():
    heldout, train = (
        [example_of(Row("f:1", {"instruction": text, "output": "o"}), Data(format="dolly"))]
        for text in ("Name a bird.", "Count to ten.")
    )
    assert overlap(heldout, train)["shared_8gram_prompt_share"] == 0.0


def test_a_row_in_another_frame_is_the_same_row():
    """The prompts differ, and what the rows themselves say does not."""
    one, other = (
        Example(f"{frame}: Name a bird.", "A heron.", "id", content="Name a bird.") for frame in ("Ask", "Do")
    )
    found = overlap([one], [other])
    assert (found["duplicate_prompts"], found["duplicate_rows"], found["near_duplicate_rows"]) == (1, 1, 1)


def test_near_duplicates_are_those_that_the_audit_finds():
    """Counted with the held-out rows alone in memory; the audit names the pairs."""
    words = random.Random(0).choices("abcdefghij", k=4000)
    train = [row(" ".join(words[at : at + 30]), " ".join(words[at + 30 : at + 40])) for at in range(0, 3000, 40)]
    changed = [
        row(f"{one.prompt} {' '.join(map(str, range(extra)))}", one.response) for extra, one in enumerate(train[:12])
    ]
    heldout = [*changed, row("x", "y"), row("p q", "r"), row("", "")]
    pairs = near_duplicates(heldout, train, 0.8)
    found = overlap(heldout, iter([*train, row("p q", "r")]))["near_duplicate_rows"]
    near = {round(pair.similarity, 6) for pair in pairs}
    assert max(near) == 1
    assert 1 <= len(pairs) < 12  # some of them are too far
    assert found == len(pairs) + 1  # and the short one


def test_train_rows_are_looked_through_once():
    assert overlap([row("a", "b")], iter([row("c", "d"), row("a", "b")]))["duplicate_rows"] == 1
