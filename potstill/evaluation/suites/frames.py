"""The words a student was trained with, as a frame to ask it in."""

from __future__ import annotations

from pathlib import Path

from potstill.data.tokenise import choose_template
from potstill.data.views import view_of
from potstill.evaluation.suites.suite import PROMPT
from potstill.models.loading import load_tokenizer
from potstill.recipe import Data


def trained_frame(data: Data, student: Path, *, allow_remote_code: bool = False) -> str | None:
    """The frame that ``data.prefix`` is, behind a chat template or not as the student was trained; None without one.

    Raises: DataError, ModelError for a student whose tokenizer cannot be used.
    """
    if not (data.prefix.text or data.prefix.chat):
        return None
    tokenizer = load_tokenizer(str(student), allow_remote_code=allow_remote_code)
    prefix = view_of(data, choose_template(data, tokenizer), train=True).prefix
    return prefix + PROMPT if prefix else None


def as_option(frame: str) -> str:
    """The frame as it is given on the command line of a shell such as bash or zsh."""
    escaped = frame.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"--frame '{frame}'" if escaped == frame else f"--frame $'{escaped}'"
