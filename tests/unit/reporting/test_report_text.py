"""Text of models and users before it is shown."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.reporting.text import clean_text, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with\ttabs\nand lines", "plain, with\ttabs\nand lines"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;2;255;0;0mred\x1b[m", "red"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://evil.example\x1b\\a link\x1b]8;;\x1b\\", "a link"),
        ("\x1b]52;c;ZXZpbA==\x07text", "text"),
        ("\x1bP1;2|payload\x1b\\text", "text"),
        ("\x1b(0lqk\x1b(B", "lqk"),
        ("\x1bctext", "text"),
        ("\x1b]8;;never ended", "8;;never ended"),
        ("\x9b31mone byte", "31mone byte"),
        ("\x1b\x1b[0m[31mmade of two", "[31mmade of two"),
        ("over\rwritten", "over\nwritten"),
        ("windows\r\nlines", "windows\nlines"),
        ("a\u2028b\u2029c\x85d", "a\nb\nc\nd"),
        ("nul\x00 bell\x07 back\x08 del\x7f", "nul bell back del"),
        ("user\u202etxt.exe\u2066", "usertxt.exe"),
        ("half \ud800 of one", "half \ufffd of one"),
        ("\u05e9\u05dc\u05d5\u05dd \u200f \u65e5\u672c \U0001f469\u200d\U0001f52c", None),
    ],
)
def test_clean_text(text: str, shown: str | None) -> None:
    assert clean_text(text) == (text if shown is None else shown)


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b\x9d[]8;mPX\\\x07\r\n\x00\u202e\ud800")))
def test_nothing_that_acts_is_left(text: str) -> None:
    shown = clean_text(text)
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cs")} - {"\n", "\t"}
    assert clean_text(shown) == shown
    shown.encode("utf-8")


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    assert clean_text("\x1b]" * 200_000) == ""
    assert clean_text("\x1bP" * 200_000) == ""


def test_one_line() -> None:
    assert one_line(" a\n\n b\u2028\tc ") == "a b c"
