"""Several teachers in one stage: which names they may have, and who has to ask them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from potstill.recipe.models import AnyTeacher, BaseTeacher
from potstill.recipe.streams import Stream

NAME = r"[a-z][a-z0-9_-]*"


def check_teachers(teachers: Mapping[str, AnyTeacher], teacher: AnyTeacher | None, streams: Sequence[Stream]) -> None:
    """Refuse further teachers that nobody asks, streams that ask one who is not there, and drops that do nothing.

    Args:
        teachers: the further ones, by name. teacher: the stage's own. streams: the stage's.
    Raises: ValueError, with the way out.
    """
    if bad := next((name for name in teachers if not re.fullmatch(NAME, name)), None):
        raise ValueError(f"a teacher is called {bad!r}. Begin with a small letter, then letters, digits, _ and -")
    if own := next((name for name, one in teachers.items() if isinstance(one, BaseTeacher)), None):
        raise ValueError(
            f"teachers.{own} is base, which only teacher can be. Set teacher=base, and name the others here"
        )
    if teachers and teacher is None:
        raise ValueError(
            f"teachers has {next(iter(teachers))}, and there is no teacher for the held-out figures. Set teacher"
        )
    for stream in streams:
        _check_stream(stream, teachers)
    for name, one in ((None, teacher), *teachers.items()):
        if one is not None and one.cache.when == "always":
            _check_cache(name, [stream for stream in streams if stream.teacher == name])
    asked = {stream.teacher for stream in streams}
    if idle := next((name for name in teachers if name not in asked), None):
        raise ValueError(f"teachers has {idle}, whom no stream asks. Set teacher={idle} in a stream, or leave it out")
    if len(streams) == 1 and streams[0].drop:
        raise ValueError(f"stream {streams[0].name} is the only one, so it is never dropped. Leave drop out")


def _check_cache(name: str | None, streams: Sequence[Stream]) -> None:
    """Refuse to keep all that a teacher says where nothing of it can be kept."""
    reasons = [f"stream {stream.name}: {stream.not_cacheable}" for stream in streams if stream.not_cacheable]
    if len(reasons) == len(streams):
        where = "teacher" if name is None else f"teachers.{name}"
        told = f" ({'; '.join(reasons)})" if reasons else ""
        raise ValueError(
            f"{where}.cache is always, and nothing that it says can be kept{told}. Set {where}.cache to auto or never"
        )


def _check_stream(stream: Stream, teachers: Mapping[str, AnyTeacher]) -> None:
    if stream.teacher is None:
        return
    if stream.teacher not in teachers:
        known = f"one of {', '.join(teachers)}" if teachers else "one in teachers"
        raise ValueError(f"stream {stream.name} asks teacher {stream.teacher}, who is not in teachers. Name {known}")
    if not stream.asks_teacher:
        raise ValueError(
            f"stream {stream.name} has teacher {stream.teacher} and asks no teacher. "
            "Set its signal to logits, or leave its teacher out"
        )
