"""What README and docs tell people to type is valid, and the code they show runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command  # the parsed command line, without running it

from potstill import cli, recipe_io
from potstill.recipe import Recipe
from potstill.recipes import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> list[str]:
    """Every indented or inline ``potstill ...`` in the pages, without its trailing remark."""
    found: set[str] = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = re.findall(r"^    (?:torchrun .* -m )?(potstill \w.*)$", text, re.M)
        inline = re.findall(r"`(?:torchrun .* -m )?(potstill [a-z][^`\n]*)`", text)
        found |= {re.split(r"\s{2,}", line)[0] for line in lines + inline}
    return sorted(
        command for command in found if not re.search(r"\.\.\.|\||METHOD|RUN|MODEL|NAME|FILE|--help", command)
    )


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 15


@pytest.mark.parametrize("command", commands())
def test_documented_commands_are_valid(command: str) -> None:
    words = shlex.split(command)[1:]
    root = get_command(cli.app)
    with root.make_context("potstill", list(words), resilient_parsing=False) as context:
        name, sub, rest = root.resolve_command(context, [*context._protected_args, *context.args])
        assert sub is not None
        parsed = sub.make_context(name, rest, parent=context)
    target, settings = parsed.params.get("recipe"), parsed.params.get("overrides") or []
    if name == "selftest":
        target = settings.pop(0) if settings and "=" not in settings[0] else "kd"
    if name in ("train", "doctor", "selftest") and target in METHODS:
        overrides = recipe_io.parse_overrides(settings)
        assert isinstance(recipe_io.load(target, overrides, methods=METHODS), Recipe)


def test_the_method_of_the_how_to_is_a_recipe() -> None:
    page = (ROOT / "docs" / "how-to" / "add-a-method.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict[str, object] = {}
    exec(code, names)
    methods = {"entropy_aware": names["entropy_aware"]}
    recipe = recipe_io.load("entropy_aware", {"threshold": 1.5}, methods=methods)  # type: ignore[arg-type]
    reverse, gated = recipe.stage.streams[0].terms
    assert (reverse.objective.name, gated.objective.name) == ("reverse_kl", "forward_kl")
    assert gated.weighting.threshold == 1.5


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [p.name for p in (ROOT / "docs").rglob("*.md") if str(p.relative_to(ROOT / "docs")) not in nav]
    assert missing == []


def test_the_tree_of_the_readme_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = {p.name for p in (ROOT / "potstill").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert {room for room in rooms if f"      {room}/" not in readme} == set()
