"""Options that several commands share. Nothing heavy is imported here."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """How a result is printed."""

    human = "human"
    json = "json"


class Layout(StrEnum):
    """How rows are laid out: ``data.format`` of a recipe."""

    prompt_response = "prompt_response"
    dolly = "dolly"
    chat = "chat"


class Framing(StrEnum):
    """How prompts are framed: ``data.template`` of a recipe."""

    auto = "auto"
    chat = "chat"
    none = "none"


FormatOption = Annotated[Format, typer.Option("--format", help="For people, or for programs.")]
LayoutOption = Annotated[Layout, typer.Option("--data-format", help="How the rows are laid out.")]
FramingOption = Annotated[Framing, typer.Option("--template", help="auto: the chat template where there is one.")]
RemoteCode = Annotated[bool, typer.Option("--allow-remote-code", help="Run Python code that comes with a model.")]
