"""The command as tests give it, on rows of four and tiny models, and what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from potstill import cli

SHORT = ("--max-new-tokens", "6", "--device", "cpu")
ROWS = [
    {"id": "a", "prompt": "Is the sky blue?", "response": "yes", "rationale": "Look up."},
    {"id": "b", "prompt": "Did the goat eat the dog?", "response": "no"},
    {"id": "c", "prompt": "Is a fox quick?", "response": "yes", "rationale": " "},
    {"id": "d", "prompt": "Is a dog an owl?", "response": "No"},
]


def write(name: str, rows: list[dict[str, Any]], folder: Path = Path()) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def annotate(*words: str, rows: str = "rows.jsonl", model: str = "plain", out: str = "out.jsonl") -> dict[str, Any]:
    """The card. Raises: what the command fails with."""
    command = ["annotate", rows, *words, "--teacher", model, "--out", out, "--format", "json", *SHORT]
    done = CliRunner().invoke(cli.app, command)
    if done.exception:
        raise done.exception
    card: dict[str, Any] = json.loads(done.stdout)
    return card


def lines(name: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def told(name: str = "out.raw.jsonl") -> list[dict[str, Any]]:
    """The raw lines without what they took."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(name)]
