"""What an LLM's outputs say in the layout of distilling step-by-step: a rationale, then a label.

Parsed as its loaders do (Hsieh et al. 2023, arXiv:2305.02301), but for what they would turn into blanks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from potstill.data.catalogue.choices import cqa_item
from potstill.data.catalogue.inference import LABELS, nli_item
from potstill.data.catalogue.item import Item
from potstill.data.catalogue.maths import svamp_item
from potstill.data.catalogue.rows import optional_text
from potstill.data.examples import Unusable
from potstill.data.reader import Row, kind_of

OPTION = re.compile(r"\([a-e]\)")
DIGITS = frozenset("0123456789")
NUMBER = re.compile(r"\d+\.?\d*|\.\d+")
EQUATION = DIGITS | frozenset("+-*/(). ")

Equal = Callable[[str, str], bool]


@dataclass(frozen=True)
class Said:
    """What an output says: the label in the LLM's words and as the data set spells it, and why."""

    verbatim: str
    label: str
    answer: int | None
    rationale: str | None


@dataclass(frozen=True)
class Layout:
    """How one data set's rows and outputs are read.

    ``runs_on`` begins an invented next example; ``mark`` stands between rationale and label; ``read`` gives the label
    verbatim, as the data set spells it, and its number among the options; ``equal`` compares it with the gold one.
    ``alike`` is weaker: whether both labels could be of one row.
    """

    item_of: Callable[[Row], Item]
    runs_on: str
    mark: str
    read: Callable[[str, Item], tuple[str, str, int | None]]
    equal: Equal | None = str.__eq__
    alike: Equal = str.__eq__

    def said(self, gold: Item, output: Any) -> Said:
        """Raises: Unusable with the reason."""
        if not isinstance(output, str):
            raise Unusable(f"the output is {kind_of(output)}, not text")
        rationale, mark, label = output.split(self.runs_on, 1)[0].rpartition(self.mark)
        if not mark:
            raise Unusable(f"the output does not say '{self.mark}'")
        return Said(*self.read(label.strip(), gold), rationale.strip() or None)


def _choice(text: str, gold: Item) -> tuple[str, str, int | None]:
    """``(b) train station.``: the words count, not the letter, in any case; one that hedges names several."""
    _, *named = OPTION.split(text)
    if len(named) != 1:
        raise Unusable("the label names several options" if named else "the label names no option")
    verbatim = named[0].strip().removesuffix(".")
    exact, folded = list(gold.options), [_folded(option) for option in gold.options]
    if verbatim not in exact and _folded(verbatim) not in folded:
        raise Unusable("the label is none of the options")
    answer = exact.index(verbatim) if verbatim in exact else folded.index(_folded(verbatim))
    return verbatim, gold.options[answer], answer


def _folded(option: str) -> str:
    return option.strip().removesuffix(".").casefold()


def _inference(text: str, gold: Item | None = None) -> tuple[str, str, int | None]:
    label = text.removesuffix(".").strip()
    if label not in LABELS:
        raise Unusable(f"the label is none of {', '.join(LABELS)}")
    return label, label, LABELS.index(label)


def _equation(text: str, gold: Item) -> tuple[str, str, int | None]:
    """Numbers, operators and brackets that close; nothing is evaluated."""
    equation = text.removesuffix(".").strip()
    if not EQUATION.issuperset(equation) or not DIGITS.intersection(equation):
        raise Unusable("the label is not an equation of numbers")
    depth = 0
    for character in equation:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
    if depth:
        raise Unusable("the label is an equation whose brackets do not close")
    return equation, equation, None


def _same_numbers(one: str, other: str) -> bool:
    """Whether two equations are of the same numbers, 84 and 84.0 being one."""
    first, second = (sorted(float(number) for number in NUMBER.findall(text)) for text in (one, other))
    return first == second


def said_in_fields(values: dict[str, Any]) -> Said:
    """What ``llm_label`` and ``rationale`` hold, in lines that are joined and parsed. Raises: Unusable."""
    return Said(*_inference(optional_text(values, "llm_label") or ""), optional_text(values, "rationale"))


LAYOUTS = {
    "cqa": Layout(cqa_item, "Q:", "So the answer is", _choice),
    "svamp": Layout(svamp_item, "Q:", "The answer is", _equation, equal=None, alike=_same_numbers),
    "anli1": Layout(lambda row: nli_item(row, "r1"), "Premise:", "So the answer is", _inference),
    "esnli": Layout(nli_item, "Premise:", "Answer:", _inference),
}
