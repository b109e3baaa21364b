"""One row, several things to ask of it: its label, its rationale, both in one text, or its own words again.

Source: Hsieh et al. 2023, Distilling step-by-step, arXiv:2305.02301, for labels and rationales asked for with a word
before the prompt; Klinge's MiniLLM_Seq2Seq for both in one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, TypeAlias

from potstill.data.examples import Example
from potstill.data.tokenise import Template
from potstill.errors import DataError
from potstill.recipe import Data, DatasetSource, Target

Asked: TypeAlias = Target | Literal["rationale", "input"]
LABEL_END = ":"  # between a label and the rationale that follows it, as in MiniLLM_Seq2Seq's data
MARK = "So the answer is"  # before a label that follows its rationale, as in PaLM's chains of thought
WHY = {  # what a row lacks that a view has nothing to answer of
    "label": "no label of the LLM",
    "rationale": "no rationale",
}


@dataclass(frozen=True)
class View:
    """What is asked of rows. ``labels`` says whose answer it is; ``seed`` shuffles rationales, where it is a number."""

    target: Asked = "response"
    labels: Literal["gold", "llm"] = "gold"
    prefix: str = ""
    seed: int | None = None


def view_of(config: Data, template: Template, *, train: bool) -> View:
    """The view of a stage's own rows: those that are not trained on always answer with the gold label."""
    return View(config.target, config.labels if train else "gold", _prefix(config, None, template))


def view_of_stream(source: DatasetSource, config: Data, template: Template, seed: int) -> View:
    """The view of the rows that a stream trains on.

    Args:
        seed: of rationales that are shuffled.
    """
    own = view_of(config, template, train=True)
    prefix = _prefix(config, source, template)
    if source.view == "response":
        return replace(own, prefix=prefix)
    assert source.view != "plain_text"  # which has no rows
    return View(source.view, prefix=prefix, seed=seed if source.shuffled else None)


def _prefix(config: Data, source: DatasetSource | None, template: Template) -> str:
    asked = config.prefix if source is None or source.prefix is None else source.prefix
    return asked.chat if template == "chat" and asked.chat is not None else asked.text


def seen(examples: Sequence[Example], view: View, *, train: bool) -> list[Example]:
    """The rows as a view shows them, in order.

    Args:
        train: leave out rows that lack what is asked for. The others keep their label alone where they have no
            rationale, so that every method is measured on the same rows.
    Raises: DataError where no row is left.
    """
    rationales = _shuffled(examples, view.seed) if view.seed is not None else [row.rationale for row in examples]
    shown = [_shown(row, why, view, train=train) for row, why in zip(examples, rationales, strict=True)]
    found = [row for row in shown if row is not None]
    if examples and not found:
        what = "label" if view.labels == "llm" and not any(row.llm_label for row in examples) else "rationale"
        raise DataError(
            f"none of the {len(examples)} train rows has a {'label of the LLM' if what == 'label' else what}",
            f"set data.annotations to a file of `potstill annotate` that holds {what}s (or to palm), or name the field "
            f"of the rows that does: data.fields.{'llm_label' if what == 'label' else what}=NAME",
        )
    return found


def _shown(row: Example, rationale: str | None, view: View, *, train: bool) -> Example | None:
    label = row.response if view.labels == "gold" else row.llm_label
    text = {
        "response": label,
        "rationale": rationale,
        "input": row.own_words,
        "label_then_rationale": _both(label, rationale, train, "{label}" + LABEL_END + " {rationale}"),
        "rationale_then_label": _both(label, rationale, train, "{rationale} " + MARK + " {label}"),
    }[view.target]
    return None if text is None else _asked(row, text, view.prefix)


def _both(label: str | None, rationale: str | None, train: bool, form: str) -> str | None:
    if label is None or (rationale is None and train):
        return None
    return label if rationale is None else form.format(label=label, rationale=rationale)


def _asked(row: Example, response: str, prefix: str) -> Example:
    if not prefix:
        return replace(row, response=response)
    messages = row.messages
    if messages:
        *before, (role, content) = messages
        messages = (*before, (role, prefix + content))
    span = row.input_span and (row.input_span[0] + len(prefix), row.input_span[1] + len(prefix))
    return replace(
        row,
        prompt=prefix + row.prompt,
        response=response,
        messages=messages,
        content=row.own_words,
        input_span=span,
    )


def _shuffled(examples: Sequence[Example], seed: int) -> list[str | None]:
    """Rationales that are each another row's: those that have one pass theirs round a ring in a drawn order.

    Raises: DataError for fewer than two.
    """
    having = [at for at, row in enumerate(examples) if row.rationale is not None]
    if len(having) < 2:
        raise DataError(f"{len(having)} train rows have a rationale, and shuffling needs two", "add rationales")
    Random(seed).shuffle(having)
    given: list[str | None] = [None] * len(examples)
    for here, there in zip(having, [*having[1:], having[0]], strict=True):
        given[here] = examples[there].rationale
    return given


# --- what a text answers ----------------------------------------------------------------------------------------------


def answer_of(target: Target, text: str) -> str:
    """The label in a text of this form: all of it where it holds no rationale, and where it has no mark of one."""
    if target == "label_then_rationale":
        return text.partition(LABEL_END)[0].strip()
    if target == "rationale_then_label":
        return text.rpartition(MARK)[2].strip()
    return text.strip()


def rationale_of(target: Target, text: str) -> str:
    """The rationale in a text of this form; empty where it has none."""
    if target == "label_then_rationale":
        return text.partition(LABEL_END)[2].strip()
    if target == "rationale_then_label":
        return text.rpartition(MARK)[0].strip()
    return ""
