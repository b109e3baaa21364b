"""Filters: what each changes, what each leaves out, in several scripts; and that steps come one after another."""

from __future__ import annotations

import pytest

from potstill.annotation.filters import BLACKLIST, FILTERS, Step, blacklist, has_word, sieved, steps_of
from potstill.annotation.reading import Annotation
from potstill.annotation.task import Task
from potstill.errors import ConfigError


def said(words: str = "It is so.", **other: object) -> Annotation:
    return Annotation("r", 0, "a prompt", **({"rationale": words, "gold": "neutral"} | other))  # type: ignore[arg-type]


def after(name: str, words: str, **other: object) -> str | None:
    """The words that a filter leaves; None where it leaves the annotation out."""
    found = FILTERS[name](said(words, **other))
    return None if isinstance(found, str) else found.words


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("Output: the goat ate.", "the goat ate."),
        ("  CONCLUSION : Reason: it ate.", "it ate."),
        ("**Explanation:** it ate.", "it ate."),
        ("Answer\uff1a它吃了。", "它吃了。"),
        ("It is a reason: a good one.", "It is a reason: a good one."),
        ("Outputs are many.", "Outputs are many."),
        ("output:", None),
        ("Reason: \n Output:  ", None),
    ],
)
def test_strip_prefix(words: str, left: str | None) -> None:
    assert after("strip_prefix", words) == left


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("He ate. He sle", "He ate."),
        ("He ate.", "He ate."),
        ("He paid 3.5 pou", None),
        ('She said "no." Then sh', 'She said "no."'),
        ("Really?! Yes (it is.) And th", "Really?! Yes (it is.)"),
        ("它吃了。它睡", "它吃了。"),
        ("「そうだ。」と言っ", "「そうだ。」"),
        ("वह गया। फिर", "वह गया।"),
        ("هل هذا؟ نعم لأ", "هل هذا؟"),
        ("no end at all", None),
    ],
)
def test_incomplete_last_sentence_is_cut_where_the_text_was_cut(words: str, left: str | None) -> None:
    assert after("incomplete_last_sentence", words, finished=False) == left
    assert after("incomplete_last_sentence", words, finished=True) == words


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("See <nowiki> here.", False),
        ("The NLI task.", False),
        ("As in [i] above.", False),
        ("Manliness.", True),
        ("[ii] is fine.", True),
    ],
)
def test_blacklist(words: str, kept: bool) -> None:
    assert (after("blacklist", words) is not None) == kept
    assert "nli" in BLACKLIST


@pytest.mark.parametrize(
    ("text", "word", "there"),
    [
        ("Straße", "STRASSE", True),
        ("caf\u00e9 au lait", "cafe\u0301", True),
        ("cafés", "café", False),
        ("这是中立的。", "中立", True),
        ("neutrality", "neutral", False),
        ("It's NEUTRAL.", "neutral", True),
        ("a ( 8 - 3 ) b", "( 8 - 3 )", True),
        ("anything", "  ", False),
        ("(x", "(", True),
    ],
)
def test_words_are_whole_in_any_case_and_form(text: str, word: str, there: bool) -> None:
    assert has_word(text, word) is there


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("no " * 5, True),
        ("no " * 6, False),
        ("No no NO no, no no.", False),
        ("ß ß ß ß ß ß", False),
        ("the answer is: " * 5 + "this.", True),
        ("the answer is: " * 6 + "this.", False),
        ("It ate it ate it ate it ate it ate it ate.", False),
        ("It is so. It is not. It is  so.", False),
        ("It is so. it is SO!", False),
        ("它吃了。它吃了。", False),
        ("It is so. It was so.", True),
    ],
)
def test_repetition(words: str, kept: bool) -> None:
    assert (after("repetition", words) is not None) == kept


@pytest.mark.parametrize(
    ("words", "kept"), [("four", False), (" a b ", False), ("fives", True), ("e\u0301" * 4, False)]
)
def test_too_short(words: str, kept: bool) -> None:
    assert (after("too_short", words) is not None) == kept


@pytest.mark.parametrize(
    ("label", "gold", "kept"),
    [
        ("neutral", "neutral", True),
        ("Neutral.", "neutral", True),
        ("entailment", "neutral", False),
        ("(84 / 2)", "( 84.0 / 2.0 )", True),
        ("42", "( 84.0 / 2.0 )", True),
        ("41", "( 84.0 / 2.0 )", False),
        (None, "neutral", True),
        ("neutral", None, True),
    ],
)
def test_label_disagreement(label: str | None, gold: str | None, kept: bool) -> None:
    assert (after("label_disagreement", "words", label=label, gold=gold) is not None) == kept


def test_leaks_label_looks_for_the_own_label_and_else_the_gold_one() -> None:
    assert after("leaks_label", "So it is neutral.") is None
    assert after("leaks_label", "So it is neutral.", label="entailment") is not None
    assert after("leaks_label", "An Entailment!", label="entailment") is None
    assert after("leaks_label", "Nothing says so.") is not None


def test_unfinished() -> None:
    assert after("unfinished", "words", finished=False) is None
    assert after("unfinished", "words") == "words"


def test_steps_come_in_their_order_and_a_dropped_one_stays_as_it_was_shown() -> None:
    cut = said("Output: It ate. It sl", finished=False)
    both = [Step(name, FILTERS[name]) for name in ("strip_prefix", "incomplete_last_sentence")]
    found = sieved(cut, both)
    assert (found.annotation.words, found.dropped_by) == ("It ate.", None)
    assert found.changed_by == ["strip_prefix", "incomplete_last_sentence"]
    found = sieved(cut, [both[0], Step("unfinished", FILTERS["unfinished"]), both[1]])
    assert (found.annotation.words, found.dropped_by, found.why) == ("It ate. It sl", "unfinished", "it was cut")


def test_what_a_person_wrote_passes_and_what_could_not_be_read_does_not() -> None:
    short = Step("too_short", FILTERS["too_short"])
    assert sieved(said("no", origin="human"), [short]).dropped_by is None
    assert sieved(said("no"), [short]).dropped_by == "too_short"
    unread = sieved(said("It is so.", unread="no mark"), [])
    assert (unread.dropped_by, unread.why) == ("unread", "no mark")


def test_a_response_is_changed_as_a_rationale_is() -> None:
    found = FILTERS["strip_prefix"](said("", rationale=None, response="Output: yes", mode="response"))
    assert isinstance(found, Annotation)
    assert (found.response, found.rationale) == ("yes", None)


def test_own_words_replace_the_blacklist() -> None:
    assert isinstance(blacklist(["goat"])(said("A Goat.")), str)
    assert not isinstance(blacklist(["goat"])(said("nowiki")), str)
    (step,) = steps_of(["blacklist"], Task("response"), ["goat"])
    assert isinstance(step.apply(said("A Goat.")), str)


@pytest.mark.parametrize(
    ("names", "want", "message"),
    [
        (["repetitions"], "response", "no filter 'repetitions'.*Did you mean 'repetition'"),
        (["too_short", "too_short"], "response", "twice"),
        (["label_disagreement"], "rationale", "looks at a label"),
        (["leaks_label"], "response", "looks at a rationale"),
        (["too_short"], "label", "looks at words"),
    ],
)
def test_filters_that_can_find_nothing_are_refused(names: list[str], want: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        steps_of(names, Task(want))  # type: ignore[arg-type]


def test_words_without_a_blacklist_are_refused() -> None:
    with pytest.raises(ConfigError, match="no blacklist"):
        steps_of(["too_short"], Task("response"), ["goat"])


def test_every_want_has_filters_that_suit_it() -> None:
    for want in ("label", "rationale", "rationale_and_label", "response"):
        steps_of(None, Task(want))
