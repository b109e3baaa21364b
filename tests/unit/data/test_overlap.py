"""Overlap of held-out with train, on rows whose overlap is known."""

from __future__ import annotations

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
