"""What a row means: from the keys of a file to an example."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from potstill.data.examples import Example, Unusable
from potstill.data.reader import Row, kind_of
from potstill.errors import DataError
from potstill.recipe import Data

# Alpaca's frames (Taori et al. 2023), as MiniLLM writes them.
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ROLES = ("system", "developer", "user", "assistant", "tool")


def example_of(row: Row, config: Data) -> Example:
    """The example a row holds, read as ``config.format`` says.

    Its id is the row's own, or where the row stands: ``file.jsonl:12``.

    Raises: Unusable with the reason, where there is no such example.
    """
    example = FORMATS[config.format](row.values, _id(row, config), config)
    return replace(example, group=_group(row, config)) if "group" in config.fields else example


def check_fields(config: Data) -> None:
    """Refuse a renaming that the format would pass over. Raises: DataError."""
    useless = sorted(set(config.fields) - {"id", "group"}) if config.format != "prompt_response" else []
    if useless:
        raise DataError(
            f"data.fields.{useless[0]} means nothing in format {config.format}, whose field names are fixed",
            f"remove it, or set data.format to prompt_response (now {config.format})",
        )


# --- formats ----------------------------------------------------------------------------------------------------------


def _prompt_response(values: dict[str, Any], id: str, config: Data) -> Example:
    """``prompt`` may be empty: text that begins at the start of a sequence; of several responses the first is taken.

    ``rationale`` and ``llm_label`` may be absent.
    """
    prompt = text_of(values, config.fields.get("prompt", "prompt"), may_be_empty=True)
    response = _first_text(values, config.fields.get("response", "response"))
    rationale, llm_label = (_optional(values, config.fields.get(name, name)) for name in ("rationale", "llm_label"))
    return Example(prompt, response, id, rationale=rationale, llm_label=llm_label)


def _dolly(values: dict[str, Any], id: str, config: Data) -> Example:
    """MiniLLM's layout: ``instruction``, ``input`` (may be absent or empty), ``output`` (of several the first)."""
    instruction = text_of(values, "instruction")
    context = text_of(values, "input", may_be_empty=True) if values.get("input") is not None else ""
    frame = WITH_INPUT if context else WITHOUT_INPUT
    prompt = frame.format(instruction=instruction, input=context)
    start = len(frame.partition("{input}")[0].format(instruction=instruction)) if context else 0
    span = (start, start + len(context))
    return Example(prompt, _first_text(values, "output"), id, content=f"{instruction}\n{context}", input_span=span)


def without_frame(prompt: str) -> str | None:
    """The instruction and the input of a prompt in Alpaca's frame, as ``content`` has them; None for another prompt."""
    for frame in (WITH_INPUT, WITHOUT_INPUT):
        before, *between, after = re.split(r"\{\w+\}", frame)
        if not (prompt.startswith(before) and prompt.endswith(after)):
            continue
        inner = prompt[len(before) : len(prompt) - len(after)]
        if not between:
            return f"{inner}\n"
        instruction, found, context = inner.partition(between[0])
        if found:
            return f"{instruction}\n{context}"
    return None


def _chat(values: dict[str, Any], id: str, config: Data) -> Example:
    """``messages``: the last is the assistant's and is the response, the rest is the prompt."""
    messages = values.get("messages")
    if not isinstance(messages, list):
        raise Unusable(_missing(values, "messages") or f"field 'messages' is {kind_of(messages)}, not a list")
    pairs = tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))
    if len(pairs) < 2:
        raise Unusable(f"field 'messages' has {len(pairs)} messages: a prompt and a response are two")
    if pairs[-1][0] != "assistant":
        raise Unusable(f"the last message is the {pairs[-1][0]}'s, not the assistant's")
    (*asked, (_, response)) = pairs
    if not response.strip():
        raise Unusable("the last message is empty")
    own = "\n".join(content for role, content in asked if role not in ("system", "developer"))
    # Which turn is an instruction and which is text to work on, nothing says: none of them is ever cut.
    return Example(_as_read(asked), response, id, messages=tuple(asked), content=own, input_span=(0, 0))


def _message(message: Any, name: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise Unusable(f"field '{name}' is {kind_of(message)}, not an object with role and content")
    named = {f"{name}.{key}": message[key] for key in ("role", "content") if key in message}
    role, content = text_of(named, f"{name}.role"), text_of(named, f"{name}.content", may_be_empty=True)
    if role not in ROLES:
        raise Unusable(f"field '{name}.role' is {role[:40]!r}, not one of {', '.join(ROLES)}")
    return role, content


def _as_read(messages: list[tuple[str, str]]) -> str:
    """A lone user message as it is; of several, each with its role before it."""
    if len(messages) == 1:
        return messages[0][1]
    return "\n".join(f"{role}: {content}" for role, content in messages)


FORMATS: dict[str, Callable[[dict[str, Any], str, Data], Example]] = {
    "prompt_response": _prompt_response,
    "dolly": _dolly,
    "chat": _chat,
}

# --- values -----------------------------------------------------------------------------------------------------------


def text_of(values: dict[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    """The text in a field. Raises: Unusable where there is none, or none that a tokenizer takes."""
    if reason := _missing(values, name):
        raise Unusable(reason)
    value = values[name]
    if not isinstance(value, str):
        raise Unusable(f"field {name!r} is {kind_of(value)}, not text")
    if not may_be_empty and not value.strip():
        raise Unusable(f"field {name!r} is empty")
    if "\0" in value:
        raise Unusable(f"field {name!r} holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise Unusable(f"field {name!r} holds half a character (a lone surrogate)")
    return value


def _first_text(values: dict[str, Any], name: str) -> str:
    """The text in a field, or the first of a list of acceptable ones. Raises: Unusable."""
    found = values.get(name)
    if not isinstance(found, list):
        return text_of(values, name)
    if not found:
        raise Unusable(f"field {name!r} is an empty list")
    return text_of({f"{name}[0]": found[0]}, f"{name}[0]")


def _optional(values: dict[str, Any], name: str) -> str | None:
    """The text in a field that need not be there; anything else than text is not there either."""
    value = values.get(name)
    return text_of(values, name) if isinstance(value, str) and value.strip() else None


def _missing(values: dict[str, Any], name: str) -> str | None:
    """Why a field is not there, naming those that are: most often it has another name."""
    if name in values:
        return None
    there = ", ".join(repr(key[:40]) for key in list(values)[:5])
    return f"missing field {name!r} (there are: {there})" if there else f"missing field {name!r}"


def _id(row: Row, config: Data) -> str:
    return _word(row.values, config.fields.get("id", "id")) or row.where


def _group(row: Row, config: Data) -> str | None:
    return _word(row.values, config.fields["group"])


def _word(values: dict[str, Any], name: str) -> str | None:
    """Text, or a whole number as text; None where there is nothing. Raises: Unusable for anything else."""
    value = values.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(values, name)
