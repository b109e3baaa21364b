"""What README and docs tell people to type is valid, and the code they show runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import models
from typer.main import get_command  # the parsed command line, without running it

from potstill import cli, recipe_io
from potstill.recipe import Recipe
from potstill.recipes import METHODS
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
ALL_RECIPES = ROOT / "docs" / "recipes" / "index.md"
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


def test_the_tutorial_shows_what_make_demo_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (ran,) = re.findall(r"potstill (train .*)$", makefile, re.M)
    assert f"potstill {' '.join(ran.split())}\n" in (ROOT / "docs/tutorials/first-student.md").read_text(
        encoding="utf-8"
    )


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
    if name in ("train", "doctor", "plan", "selftest") and target in METHODS:
        overrides = recipe_io.parse_overrides(settings)
        assert isinstance(recipe_io.load(target, overrides, methods=METHODS), Recipe)


def test_the_method_of_the_how_to_is_a_recipe() -> None:
    page = (ROOT / "docs" / "how-to" / "add-a-method.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict[str, object] = {}
    exec(code, names)
    methods = {"cover_then_seek": names["cover_then_seek"]}
    settings = {"weight": 0.5, "rollout.max_new_tokens": 16}
    recipe = recipe_io.load("cover_then_seek", settings, methods=methods)  # type: ignore[arg-type]
    on_data, on_own = recipe.stage.streams
    assert (on_data.terms[0].objective.name, on_own.terms[0].objective.name) == ("forward_kl", "reverse_kl")
    assert on_own.terms[0].coefficient.end == 0.5  # type: ignore[union-attr]
    assert on_own.source.max_new_tokens == 16  # type: ignore[union-attr]


def table_row(page: Path, method: str) -> str:
    """The first row of a page's tables whose first cell names the method; empty where there is none."""
    rows = [row for row in page.read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    names = (f"`{method}`", f"[{method}]")
    return next((row for row in rows if any(name in row.split("|")[1] for name in names)), "")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_page_and_a_row_in_the_readme(method: str) -> None:
    page = ROOT / "docs" / "recipes" / f"{method}.md"
    assert f"::: potstill.recipes.{method}\n" in page.read_text(encoding="utf-8")
    assert f"potstill train {method}" in page.read_text(encoding="utf-8")
    assert table_row(ROOT / "README.md", method)


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_recipes_is_what_they_are(method: str) -> None:
    _, text, signal, terms = table_row(ALL_RECIPES, method).strip("| ").split(" | ")
    stages = recipe_io.load(method, {}, methods=METHODS).stages
    streams = [stream for stage in stages for stream in stage.streams]
    assert {stream.source.name for stream in streams} == names_in(text)
    assert {stream.signal.name for stream in streams} <= names_in(signal)
    assert {term.objective.name for stream in streams for term in stream.terms} <= names_in(terms)


def test_the_generated_table_has_its_place() -> None:
    assert re.search(r"^<!-- table:begin -->\n(.*\n)*<!-- table:end -->$", ALL_RECIPES.read_text("utf-8"), re.M)


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [p.name for p in (ROOT / "docs").rglob("*.md") if str(p.relative_to(ROOT / "docs")) not in nav]
    assert missing == []


def test_the_tree_of_the_readme_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = {p.name for p in (ROOT / "potstill").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert {room for room in rooms if f"      {room}/" not in readme} == set()


def test_the_loss_across_tokenizers_of_the_how_to_can_be_trained_on() -> None:
    page = (ROOT / "docs" / "how-to" / "different-tokenizers.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    coarse, fine = tiny.tokenizer(), tiny.tokenizer()
    fine.backend_tokenizer.model = models.BPE(vocab=fine.get_vocab(), merges=[])  # every byte a token
    student, teacher = tiny.llama(0), tiny.llama(1)
    rows = ("What is the colour of the sky?", " The sky is blue, and a goat ate the hat.")
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = names["loss_of"](student, fine, teacher, coarse, *rows)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    _, student_ids, student_pieces = names["as_tokens"](fine, *rows)
    _, teacher_ids, teacher_pieces = names["as_tokens"](coarse, *rows)
    assert len(student_ids) > len(teacher_ids)
    assert b"".join(student_pieces) == b"".join(teacher_pieces) == rows[1].encode()


def test_the_recipe_file_that_is_shown_is_a_recipe(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "own-recipe.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    file = tmp_path / "mine.yaml"
    file.write_text(shown, encoding="utf-8")
    stage = recipe_io.load(str(file), {}, methods=METHODS).stage
    built_in = recipe_io.load("gkd", {}, methods=METHODS).stage
    assert [stream.name for stream in stage.streams] == ["mixed", "data"]
    shared = ("optimizer", "batch", "budget", "checkpoint", "evaluation")
    assert all(getattr(stage, part) == getattr(built_in, part) for part in shared)  # as the page says
