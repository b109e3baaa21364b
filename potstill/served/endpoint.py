"""One question to an OpenAI-compatible server, by the standard library: an answer, or what went wrong and what to do.

A server is not believed: a page of HTML, half an answer or none with status 200 are failures like any other. The key is
in a header of the request and nowhere else; where a server repeats it in a message it is blotted out.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from potstill.errors import ConfigError

MAX_REPLY_BYTES = 1_000_000
TOLD_CHARS = 300  # of a server's message
PASSING = frozenset(
    {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
)  # statuses that may pass by themselves
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Failed(Exception):
    """A request without an answer.

    Args:
        cause: in a few words, without the key.
        status: of HTTP, where there was one.
        passing: whether the same request may succeed later. wait: seconds that the server asks for.
        reached: whether anything answered at all.
    """

    def __init__(
        self,
        cause: str,
        *,
        status: int | None = None,
        passing: bool = False,
        wait: float | None = None,
        reached: bool = True,
    ):
        super().__init__(cause)
        self.cause, self.status, self.passing, self.wait, self.reached = cause, status, passing, wait, reached


@dataclass(frozen=True)
class Reply:
    """What a server wrote, why it stopped, and which model it says it is."""

    text: str
    finish_reason: str | None
    model: str | None


class _NoRedirect(HTTPRedirectHandler):
    """A redirect is a failure: the key would go where nobody sent it."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """A server: its address up to and with /v1, a key or none, and how long one answer may take in seconds."""

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0

    def complete(self, body: Mapping[str, Any]) -> Reply:
        """The first choice of a chat completion.

        Raises: Failed.
        """
        return _reply_in(self._call("/chat/completions", json.dumps(dict(body)).encode()))

    def models(self) -> list[str]:
        """The ids that the server lists; empty where it lists none."""
        try:
            listed = self._call("/models", None)
            return [str(one["id"]) for one in listed["data"]]
        except (Failed, KeyError, TypeError):
            return []

    def _call(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "potstill"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = Request(self.url + path, data=body, headers=headers)
        deadline = time.monotonic() + self.timeout
        try:
            with _opener(self.url).open(request, timeout=self.timeout) as response:
                text = _read(response, deadline)
        except HTTPError as error:
            self._told(error)
        except (OSError, HTTPException, ValueError) as error:
            self._broken(error)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise Failed("the server's answer is not JSON", passing=True) from None

    def _told(self, error: HTTPError) -> NoReturn:
        """Fail with what the server says beside a status of 300 or more."""
        try:
            body = error.read(MAX_REPLY_BYTES).decode("utf-8", "replace")
        except (OSError, HTTPException):
            body = ""
        said = _message_in(body)
        # Out of quota comes with the status of too many requests, but does not pass.
        passing = error.code in PASSING and "insufficient_quota" not in body
        cause = f"HTTP {error.code}" + (f": {self._safe(said)}" if said else "")
        raise Failed(cause, status=error.code, passing=passing, wait=_wait(error.headers.get("Retry-After"))) from None

    def _broken(self, error: Exception) -> NoReturn:
        """Fail with what the connection says: refused and unknown hosts did not answer, the rest broke off."""
        reason = error.reason if isinstance(error, URLError) else error
        late = isinstance(reason, TimeoutError)
        said = f"no answer within {self.timeout:g} seconds" if late else f"{type(reason).__name__}: {reason}"
        reached = late or not isinstance(error, URLError)
        raise Failed(self._safe(said), passing=True, reached=reached) from None

    def _safe(self, said: str) -> str:
        """A message for a terminal: one line, not long, without the key."""
        clean = said.replace(self.key, "***") if self.key else said
        return " ".join("".join(char if char.isprintable() else " " for char in clean).split())[:TOLD_CHARS]


def endpoint_at(url: str, *, key_env: str | None = None, timeout: float = 120.0) -> Endpoint:
    """The server at an address, with the key in an environment variable if one is named.

    Raises: ConfigError for an address that is none, and for a variable that is not set or holds no key.
    """
    return Endpoint(_checked(url), None if key_env is None else _key_in(key_env), timeout)


def _checked(url: str) -> str:
    fix = "give it as http://127.0.0.1:8000/v1 or https://host/v1"
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"--url cannot be read: {error}", fix) from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError("--url has a name or a password in it", "put the key in a variable, see --api-key-env")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(f"--url {url!r} is not the address of a server", fix)
    if _is_link_local(host):
        raise ConfigError(f"--url {url!r} is a link-local address, where clouds keep credentials", fix)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/chat/completions')}"


def _is_link_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:  # a name
        return False


def _key_in(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {variable} is not set", f"export {variable}=... and run again")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"what the environment variable {variable} holds is not a key", "set it to the key alone")
    return key


def _opener(url: str) -> OpenerDirector:
    """Follows no redirect, and goes through no proxy to this machine itself."""
    direct = [ProxyHandler({})] if urlsplit(url).hostname in LOOPBACK else []
    return build_opener(_NoRedirect, *direct)


def _read(response: Any, deadline: float) -> bytes:
    """The body; a server that drips or never ends is cut off. One that broke off is no JSON, and found out there."""
    parts: list[bytes] = []
    while part := response.read1(65536):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if sum(map(len, parts)) > MAX_REPLY_BYTES:
            raise ValueError(f"more than {MAX_REPLY_BYTES:,} bytes")
    return b"".join(parts)


def _reply_in(found: Any) -> Reply:
    """The first choice, checked: text or, for a judge that refused, an empty one."""
    try:
        choice = found["choices"][0]
        content, reason, model = choice["message"].get("content"), choice.get("finish_reason"), found.get("model")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Failed("the server's answer is not a chat completion", passing=True) from None
    if content is not None and not isinstance(content, str):
        raise Failed("the server's answer is not text", passing=True)
    if content is None and not (reason == "content_filter" or choice["message"].get("refusal")):
        raise Failed("the server's answer has no text", passing=True)
    return Reply(content or "", _text(reason), _text(model))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _message_in(body: str) -> str:
    """A server's own words: {"error": {"message": ...}}, {"detail": ...} or {"message": ...}."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return "" if body.lstrip().startswith("<") else body
    inner = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
    return str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)


def _wait(header: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
