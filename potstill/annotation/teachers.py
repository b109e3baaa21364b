"""Who is asked, opened: a model of this process or one behind a server, and what of it an answer depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from potstill.annotation.annotator import Annotator
from potstill.annotation.beams import Search
from potstill.annotation.local import LocalAnnotator
from potstill.annotation.served import ServedAnnotator
from potstill.errors import ConfigError
from potstill.evaluation.suites.subject import open_subject
from potstill.models.fingerprint import fingerprint_of
from potstill.sampling.distributions import Decoding
from potstill.served.asking import Manner
from potstill.served.endpoint import Endpoint

NEW_TOKENS = {"label": 16, "rationale": 100, "rationale_and_label": 128, "response": 256}


@dataclass(frozen=True)
class Writing:
    """How a teacher writes: by transformers' search, or by the sampler where the search is plain; and how it is framed.

    Raises: ConfigError.
    """

    search: Search
    framing: Literal["auto", "chat", "none"] = "auto"

    def __post_init__(self) -> None:
        Decoding(self.search.max_new_tokens, frozenset(), self.search.temperature, top_p=self.search.top_p)

    @property
    def settings(self) -> dict[str, Any]:
        """For the card: annotations that were begun are gone on with only under the same names and values."""
        return {**asdict(self.search), "framing": self.framing}


@dataclass(frozen=True)
class Teacher:
    """A teacher that is not opened yet. ``settings``: everything that an answer depends on, for the card."""

    settings: dict[str, Any]
    open: Callable[[], Annotator]


def local_teacher(
    name: str,
    path: str,
    writing: Writing,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    allow_remote_code: bool = False,
) -> Teacher:
    """A model of this process.

    Args:
        name: as the user gave it. path: what that means: an embedded name, a folder, a .gguf file or a hub id.
    Raises: ModelError, also by ``open``.
    """

    def opened() -> Annotator:
        subject = open_subject(path, device=device, batch_size=batch_size, allow_remote_code=allow_remote_code)
        subject = replace(subject.with_template(writing.framing), name=name)
        search = writing.search
        decoding = subject.decoding(search.max_new_tokens, temperature=search.temperature, top_p=search.top_p)
        return LocalAnnotator(subject, decoding, None if search.is_plain else search)

    return Teacher({"model": name, "fingerprint": fingerprint_of(path), **writing.settings}, opened)


def served_teacher(
    model: str,
    endpoint: Endpoint,
    writing: Writing,
    *,
    settings: Mapping[str, Any] | None = None,
    concurrency: int = 4,
    attempts: int = 5,
    backoff: float = 1.0,
    say: Callable[[str], None] = lambda text: None,
) -> Teacher:
    """A model behind an OpenAI-compatible server.

    Args:
        model: the server's name of it. settings: of the request beside those of ``writing``; None leaves one out.
        concurrency, attempts, backoff, say: as ``Manner``.
    Raises: ConfigError for what cannot be asked of a server.
    """
    search = writing.search
    if not search.is_plain:
        raise ConfigError(
            "beams, a penalty on repeats and a least length are not what servers of chat completions know",
            "leave --num-beams, --repetition-penalty and --min-new-tokens out, or give the server's own by --set",
        )
    if writing.framing != "auto":
        raise ConfigError(f"--framing is {writing.framing}, and a server frames prompts itself", "leave it out")
    usual = {"temperature": search.temperature, "max_tokens": search.max_new_tokens}
    usual |= {"top_p": search.top_p} if search.top_p < 1 else {}
    request = {
        name: value for name, value in {"model": model, **usual, **(settings or {})}.items() if value is not None
    }
    manner = Manner(
        request, concurrency, attempts, backoff, who="annotate", what="questions", option="--teacher", say=say
    )
    return Teacher({"served": True, **request}, lambda: ServedAnnotator(endpoint, manner))
