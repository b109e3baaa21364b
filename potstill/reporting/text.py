"""Text of users and models, made harmless to show.

A model's answer may hold anything: escape sequences that recolour a terminal or write to its clipboard, marks that turn
the reading direction around, halves of characters. Escaping for HTML, Markdown or YAML comes after this, where the text
is put in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Escape sequences with their payload (ECMA-48): strings up to their terminator, CSI, two characters.
_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles, links, the clipboard
    r"|\x1b[PX^_][^\x1b]*\x1b\\"  # DCS, SOS, PM, APC
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, the cursor
    r"|\x1b[ -/]*[0-~]"
)
_BREAKS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# C0 without tab and line feed, C1 (also one-byte introducers: their payload stays as text), and marks that override
# or isolate the reading direction; those a script itself needs (U+200E, U+200F) stay.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_BROKEN = re.compile("[\ud800-\udfff\ufffe\uffff]")  # cannot be written as UTF-8, or not allowed in XML


def clean_text(text: str) -> str:
    """The text without escape sequences and control characters; lines and tabs stay, broken ones become U+FFFD."""
    text = _BREAKS.sub("\n", _ESCAPES.sub("", text))
    return _BROKEN.sub("\ufffd", _CONTROLS.sub("", text))


def one_line(text: str) -> str:
    """The same on one line, runs of white space as one space."""
    return " ".join(clean_text(text).split())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; a bar in a cell ends no cell."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "| " + " | ".join(["---"] * len(head)) + " |", *lines[1:]])
