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
from potstill.evaluation.suites.subject import fingerprint_of, open_subject
from potstill.sampling.distributions import Decoding
from potstill.served.asking import Manner
from potstill.served.endpoint import Endpoint

NEW_TOKENS = {"label": 16, "rationale": 100, "rationale_and_label": 128, "response": 256}


@dataclass(frozen=True)
class Writing:
    """How a teacher writes. Beams, a penalty or a least length are transformers' search; else it is the sampler.

    Raises: ConfigError.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    framing: Literal["auto", "chat", "none"] = "auto"

    def __post_init__(self) -> None:
        Decoding(self.max_new_tokens, frozenset(), self.temperature, top_p=self.top_p)
        self.search()

    def search(self) -> Search | None:
        names = ("max_new_tokens", "num_beams", "repetition_penalty", "min_new_tokens", "temperature", "top_p")
        found = Search(**{name: getattr(self, name) for name in names})
        plain = Search(self.max_new_tokens, temperature=self.temperature, top_p=self.top_p)
        return None if found == plain else found


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
        decoding = subject.decoding(writing.max_new_tokens, temperature=writing.temperature, top_p=writing.top_p)
        return LocalAnnotator(subject, decoding, writing.search())

    return Teacher({"model": name, "fingerprint": fingerprint_of(path), **asdict(writing)}, opened)


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
    if writing.search() is not None:
        raise ConfigError(
            "beams, a penalty on repeats and a least length are not what servers of chat completions know",
            "leave --num-beams, --repetition-penalty and --min-new-tokens out, or give the server's own by --set",
        )
    if writing.framing != "auto":
        raise ConfigError(f"--framing is {writing.framing}, and a server frames prompts itself", "leave it out")
    usual = {"temperature": writing.temperature, "max_tokens": writing.max_new_tokens}
    usual |= {"top_p": writing.top_p} if writing.top_p < 1 else {}
    request = {
        name: value for name, value in {"model": model, **usual, **(settings or {})}.items() if value is not None
    }
    manner = Manner(
        request, concurrency, attempts, backoff, who="annotate", what="questions", option="--teacher", say=say
    )
    return Teacher({"served": True, **request}, lambda: ServedAnnotator(endpoint, manner))
