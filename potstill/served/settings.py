"""Settings of a request as they are given on the command line."""

from __future__ import annotations

import json
from typing import Any

from potstill.errors import ConfigError

OWN = ("model", "messages", "stream", "n")  # what a command sets itself


def settings_in(words: list[str], model_option: str) -> dict[str, Any]:
    """NAME=JSON words as an object; what is no JSON is text.

    Args:
        model_option: what names the model on the command line, for a message.
    Raises: ConfigError for a word without a name, and for names that are not settings.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not name or not sign:
            raise ConfigError(f"--set {word!r} is not NAME=JSON", "write it as --set max_tokens=500")
        if name in OWN:
            raise ConfigError(
                f"--set {name} is not for settings", f"leave it out; the model is named by {model_option}"
            )
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
