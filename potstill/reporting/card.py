"""The model card: README.md beside a student, in the form model hubs read. Names of users are shown, never obeyed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.reporting import settings, tables
from potstill.reporting.formats import duration, number, percent
from potstill.reporting.text import one_line
from potstill.run import Run, write_text

COUNTS = ("rows", "used", "quarantined", "truncated_responses")  # of data.json
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)

LOAD = """\
```python
from transformers import {auto}, AutoTokenizer

folder = "."  # where this file is
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder)
```

Nothing of potstill is needed to run it."""

LIMITS = """\
- The figures hold for the held-out rows they were measured on. They say nothing of other tasks, languages or lengths.
- Nothing here measures truthfulness, safety or bias. A student may copy what is wrong in its teacher and add mistakes
  of its own.
- The licences of the models and the data it was made from apply."""


def write_card(run: Run, folder: Path) -> Path:
    """Write README.md into ``folder``, whole or not at all, from the run's files."""
    file = folder / "README.md"
    write_text(file, card(run))
    return file


def card(run: Run) -> str:
    """The card's text."""
    parts = (
        _front_matter(run),
        f"# {code(run.name)}",
        "A small language model distilled with potstill." if settings.teacher(run) else "A small language model.",
        "\n\n".join(tables.verdict(run)),
        "## How it was made",
        "\n".join(f"- {fact}" for fact in _facts(run)),
        "## Figures",
        _figures(run),
        "## Use",
        "\n\n".join([_loading(run), *_asking(run)]),
        "## Limits",
        LIMITS,
        "## Make it again",
        _command(run),
    )
    return "\n\n".join(parts) + "\n"


def code(text: str) -> str:
    """User text as a Markdown code span, in which nothing is markup. The fence is longer than any run of backticks."""
    text = one_line(text) or "-"
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def quoted(text: str) -> str:
    """User text as a YAML double-quoted scalar, which a JSON string is."""
    return json.dumps(one_line(text), ensure_ascii=False)


def _front_matter(run: Run) -> str:
    source = settings.student_source(run)
    base = [f"base_model: {quoted(source)}"] if source and _is_hub_id(source) else []
    tags = ["distillation", "potstill"] if settings.teacher(run) else ["potstill"]
    task = "text2text-generation" if _is_encoder_decoder(run) else "text-generation"
    lines = ["library_name: transformers", f"pipeline_tag: {task}", *base, "tags:", *(f"- {t}" for t in tags)]
    return "\n".join(["---", *lines, "---"])


def _is_encoder_decoder(run: Run) -> bool:
    return run.read("student").get("kind") == "encoder-decoder"


def _loading(run: Run) -> str:
    return LOAD.format(auto="AutoModelForSeq2SeqLM" if _is_encoder_decoder(run) else "AutoModelForCausalLM")


def _asking(run: Run) -> Iterator[str]:
    """The words that stood before every prompt in training, without which the model was never asked."""
    prefix = settings.value_at(settings.stage(run), "data", "prefix")
    text, chat = settings.value_at(prefix, "text"), settings.value_at(prefix, "chat")
    words = chat if run.read("data").get("template") == "chat" and chat is not None else text
    if isinstance(words, str) and words:
        shown = code(json.dumps(words))
        yield f"It was trained to answer prompts that begin with {shown}: put these words before yours."


def _is_hub_id(name: str) -> bool:
    """Whether a hub would know the name: ``owner/name``, and no folder here."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def _model(name: str) -> str:
    """A model's name; of a path only the end, since a card is made to be passed on and paths name people."""
    path = Path(one_line(name)).expanduser() if name.startswith("~/") else Path(one_line(name))
    return code(path.name if path.is_absolute() else name)


def _facts(run: Run) -> Iterator[str]:
    """How the student was made, as far as the run says."""
    if method := settings.method(run):
        yield f"method: {code(method)}"
    if teacher := settings.teacher(run):
        yield f"teacher: {_model(teacher)}"
    if further := settings.further_teachers(run):
        yield f"further teachers: {', '.join(map(_model, further))}"
    yield f"student: {_student(run)}"
    if adapter := settings.value_at(run.read("student"), "adapter"):
        rank, beside = settings.value_at(adapter, "rank"), settings.value_at(adapter, "target_modules")
        layers = ", ".join(map(str, beside)) if isinstance(beside, list) else "linear layers"
        yield f"trained: a LoRA adapter of rank {code(str(rank))} beside {code(layers)}, merged into these weights"
    if terms := _terms(run):
        yield f"loss: {terms}"
    if texts := "; ".join(_texts(run)):
        yield f"text: {texts}"
    yield f"data: {_data(run)}"
    yield from _said(run)
    yield f"training: {_training(run)}"


def _student(run: Run) -> str:
    source, made = settings.student_source(run), run.read("student")
    if source is None:
        return "not recorded"
    kept = made.get("kept_layers")
    if settings.value_at(settings.stage(run), "student", "kind") == "fresh":
        return f"weights drawn anew, in the architecture of {_model(source)}"
    if not isinstance(kept, list):
        return f"{_model(source)}, trained further"
    layers = ", ".join(str(layer) for layer in kept)
    encoder = made.get("encoder_kept_layers")
    beside = f", and of its encoder {code(', '.join(map(str, encoder)))}" if isinstance(encoder, list) else ""
    by = settings.value_at(settings.stage(run), "student", "choose_by") if made.get("block_influence") else None
    how = f", chosen by {code(str(by))}" if by else ""
    total = number(made.get("of_layers"))
    return f"layers {code(layers)} of {_model(source)}" + (f" ({total:.0f} layers)" if total else "") + beside + how


def _terms(run: Run) -> str:
    """The summands of the loss, by name and coefficient."""
    found = []
    given = settings.stage(run).get("streams")
    streams = given if isinstance(given, list) else []
    for stream in streams:
        terms = settings.value_at(stream, "terms")
        for term in terms if isinstance(terms, list) else []:
            objective = settings.value_at(term, "objective")
            name = settings.value_at(objective, "name") or objective
            coefficient = settings.value_at(term, "coefficient")
            of = f" of {code(str(settings.value_at(stream, 'name')))}" if len(streams) > 1 else ""
            found.append(f"{1.0 if number(coefficient) is None else coefficient:g} x {code(str(name))}{of}")
    return " + ".join(found)


def _texts(run: Run) -> Iterator[str]:
    """What each stream trained on, where it is not the responses of the data."""
    written = run.teacher_texts()
    streams = settings.stage(run).get("streams")
    for stream in streams if isinstance(streams, list) else []:
        name, source = settings.value_at(stream, "name"), settings.value_at(stream, "source")
        kind = settings.value_at(source, "name") or source
        if kind in (None, "dataset"):
            yield from _view(name, source)
            continue
        rollout = source if kind == "rollout" else settings.value_at(source, "rollout")
        policy = settings.value_at(rollout, "policy", "name") or settings.value_at(rollout, "policy") or "student"
        told = f"{code(str(name))} is a {code(str(kind))} of the policy {code(str(policy))}"
        if counts := written.get(str(name)):
            told += f": {counts['kept']:,} responses of {counts['responses']:,} that the teacher wrote beforehand"
        yield told


def _view(name: Any, source: Any) -> Iterator[str]:
    """What a stream asks of the rows, where that is not their answer."""
    view = settings.value_at(source, "view")
    if view in ("rationale", "input"):
        whose = ", each another row's" if settings.value_at(source, "shuffled") else ""
        yield f"{code(str(name))} is the rows' {view}{whose}"
    elif settings.value_at(source, "order"):
        yield f"{code(str(name))} is the same rows in another order"


def _data(run: Run) -> str:
    data = run.read("data")
    path = settings.value_at(settings.stage(run), "data", "path")
    named = [_model(path)] if isinstance(path, str) else []
    counts = [f"{value:,.0f} {key.replace('_', ' ')}" for key in COUNTS if (value := number(data.get(key))) is not None]
    splits = data.get("splits")
    for name, split in splits.items() if isinstance(splits, dict) else []:
        size = number(split.get("used") if isinstance(split, dict) else split)
        if size is not None:
            counts.append(f"{size:,.0f} for {code(name)}")
    shared = number(settings.value_at(data, "overlap", "shared_8gram_response_share"))
    if shared is not None:
        counts.append(f"{percent(shared)} of held-out responses share eight words in a row with training rows")
    return "; ".join(named + counts) or "not recorded"


def _said(run: Run) -> Iterator[str]:
    """Whose labels and rationales were trained on, where a row has more than an answer."""
    data = settings.value_at(settings.stage(run), "data")
    target, annotations = settings.value_at(data, "target"), settings.value_at(data, "annotations")
    share = number(settings.value_at(data, "subsample"))
    if share is not None and share < 1:
        yield f"share of the training rows: {percent(share)}"
    if settings.value_at(data, "labels") == "llm":
        yield "labels: those of a language model, for the rows that were trained on"
    if target in ("label_then_rationale", "rationale_then_label"):
        yield f"answers: {str(target).replace('_', ' ')}, in one text"
    if isinstance(annotations, str):
        yield f"annotations: {_model(annotations)}"


def _training(run: Run) -> str:
    cost = run.read("cost")
    if number(cost.get("steps")) is None:
        return "not recorded"
    parts = [f"{cost['steps']:,} steps"]
    if (tokens := number(cost.get("response_tokens"))) is not None:
        parts.append(f"{tokens:,.0f} response tokens")
    if number(cost.get("training_s")) is not None:
        parts.append(duration(cost["training_s"]))
    if number(cost.get("best_step")) is not None:
        parts.append(f"this is the student of step {cost['best_step']:,}, the best on validation rows")
    return "; ".join(parts)


def _figures(run: Run) -> str:
    """The table, of our own words and of numbers alone."""
    rows = list(tables.rows(run))
    if not rows:
        return "Not measured."
    columns = tables.columns(run)
    lines = ["| model | " + " | ".join(column.name for column in columns) + " |"]
    lines += ["|---|" + "---:|" * len(columns)]
    lines += [f"| {tables.MODEL_NAMES[m]} | " + " | ".join(cell.value for cell in cells) + " |" for m, cells in rows]
    ways = {way: ", ".join(c.name for c in columns if c.better == way) for way in ("lower", "higher")}
    return "\n".join(lines) + f"\n\nLower is better: {ways['lower']}. Higher is better: {ways['higher']}."


def _command(run: Run) -> str:
    """The line that runs the same recipe again, fenced so that a name cannot end the block."""
    line = f"potstill train {shlex.quote(f'runs/{one_line(run.name)}/recipe.yaml')} run=again"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", line)), default=0))
    return f"With the recipe in the run's folder, where all settings are written out:\n\n{fence}sh\n{line}\n{fence}"
