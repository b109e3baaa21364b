"""A document on one line: its line breaks as a marker, as MiniLLM's corpora have them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from potstill.data.examples import Unusable
from potstill.data.indexed.staging import staging
from potstill.errors import DataError

MARKER = "<@x(x!>"


def to_line(document: str, *, exact: bool = False) -> str:
    """The document on one line, without an end of line.

    Args:
        exact: a marker for each line break, so that ``from_line`` gives all of them back; otherwise one for each run
            of them, as MiniLLM writes, and blank lines are lost. MiniLLM reads both.
    Raises: Unusable where the document holds the marker: it would come back as a line break.
    Source: MiniLLM, tools/get_openwebtext.py. A carriage return becomes a line break: text files are read that way.
    """
    if MARKER in document:
        raise Unusable(f"it holds {MARKER!r}, which stands for a line break")
    text = document.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub("\n" if exact else "\n+", MARKER, text)


def from_line(line: str) -> str:
    """The document that a line holds; the line without its end of line."""
    return line.replace(MARKER, "\n")


def write_lines(documents: Iterable[str], file: str | Path, *, exact: bool = False) -> int:
    """Write a corpus of one document a line, whole or not at all, over what was there; the number of its lines.

    A document without text has no line. Memory holds one document.

    Raises: DataError for a document that holds the marker or half a character, or a disk that refuses.
    """
    target, count = Path(file), 0
    with staging(target) as folder:
        written = folder / "lines"
        with open(written, "wb") as handle:
            for number, document in enumerate(documents, start=1):
                if document.strip():
                    handle.write(_bytes(document, number, exact) + b"\n")
                    count += 1
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(written, target)
    return count


def _bytes(document: str, number: int, exact: bool) -> bytes:
    try:
        return to_line(document, exact=exact).encode("utf-8")
    except Unusable as reason:
        raise DataError(f"document {number} cannot be on a line: {reason}", "leave the document out") from None
    except UnicodeEncodeError:
        cause = f"document {number} holds half a character (a lone surrogate)"
        raise DataError(cause, "leave the document out") from None
