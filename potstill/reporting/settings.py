"""A run's recipe as plain data, read without judging it: a report of an old run must not fail on today's schema."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from potstill.recipe import BASE
from potstill.run import Run

# Settings of answers that recipes of older versions do not have, as they were then.
PLAIN = {"num_beams": "1", "repetition_penalty": "1.0", "sampling_top_p": "1.0", "accuracy": "none"}


def recipe_text(run: Run) -> str:
    """recipe.yaml as it stands, or nothing."""
    return run.recipe_file.read_text(encoding="utf-8", errors="replace") if run.recipe_file.is_file() else ""


def recipe(run: Run) -> dict[str, Any]:
    """recipe.yaml as a mapping, not to be changed; empty where there is none or it cannot be read."""
    return _parsed(recipe_text(run))


@lru_cache(maxsize=64)  # a report asks for one setting after another, and parsing takes a tenth of a second
def _parsed(text: str) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, RecursionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def stage(run: Run) -> dict[str, Any]:
    """The recipe's last stage: the one whose student is the result."""
    stages = recipe(run).get("stages")
    last = stages[-1] if isinstance(stages, list) and stages else {}
    return last if isinstance(last, dict) else {}


def value_at(content: Any, *keys: str) -> Any:
    """The value under nested keys, or None where one of them is absent."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def measured_with(run: Run) -> dict[str, str | None]:
    """The settings of the evaluation, None where they are not known or PLAIN, and what named the best checkpoint."""
    keys = ("generate_examples", "max_new_tokens", "sampling_temperature", "batch_size")
    found = {key: _name(value_at(stage(run), "evaluation", key)) for key in keys}
    for key, plain in PLAIN.items():
        name = _name(value_at(stage(run), "evaluation", key))
        found[key] = None if name == plain else name
    # There may be fewer rows than were to be answered; and samples may have been left out.
    rows = {row.get("num_generated_examples") for row in run.evaluations().values()} - {None}
    found["generate_examples"] = str(rows.pop()) if len(rows) == 1 else found["generate_examples"]
    if "samples" in (value_at(stage(run), "evaluation", "leave_out") or ()):
        found["sampling_temperature"] = None
    return found | {"best_by": _name(value_at(stage(run), "checkpoint", "best_by"))}


def answers(run: Run) -> str:
    """What the answers are called that were not sampled."""
    beams = measured_with(run)["num_beams"]
    return f"the best answers of {beams} beams" if beams else "greedy answers"


def method(run: Run) -> str | None:
    return _name(recipe(run).get("method"))


def teacher(run: Run) -> str | None:
    """The teacher's name, in either spelling a recipe allows; of a student's own base the student's."""
    asked = stage(run).get("teacher")
    is_base = asked == BASE or value_at(asked, "kind") == BASE
    return _model(stage(run).get("student") if is_base else asked)


def further_teachers(run: Run) -> list[str]:
    """The names of the models that teach beside the teacher, each once."""
    teachers = stage(run).get("teachers")
    named = map(_model, teachers.values()) if isinstance(teachers, dict) else ()
    return list(dict.fromkeys(name for name in named if name))


def data(run: Run) -> str | None:
    """The rows that were trained on, by the name that the recipe has for them."""
    return _name(value_at(stage(run), "data", "path"))


def student_source(run: Run) -> str | None:
    """What the student was made from: as noted when it was made, else as the recipe says, else the teacher."""
    return _name(value_at(run.read("student"), "from")) or _model(stage(run).get("student")) or teacher(run)


def _model(value: Any) -> str | None:
    return _name(value.get("model") if isinstance(value, dict) else value)


def _name(value: Any) -> str | None:
    """Only a scalar: a recipe can hold aliases that grow without end when they are written out."""
    return str(value) if isinstance(value, (str, int, float)) else None
