"""The value of arithmetic that a model wrote, without running it as code, and the number an answer ends in.

Nothing here raises: a model may write anything. What has no value has a reason, one of ``REASONS``, to be counted.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

MAX_LENGTH = 1000  # characters of an expression
MAX_DEPTH = 50  # parentheses and minus signs within each other
READ = 10_000  # characters of an answer, from its end
EMPTY, LONG, DEEP = "empty", "too long", "too deep"
NONSENSE, UNBALANCED = "not arithmetic", "unbalanced parentheses"
ZERO, OVERFLOW = "division by zero", "overflow"
NO_NUMBER, SEVERAL, UNSOLVED = "no number", "several answers", "an equation left unsolved"
REASONS = (EMPTY, LONG, DEEP, NONSENSE, UNBALANCED, ZERO, OVERFLOW, NO_NUMBER, SEVERAL, UNSOLVED)

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_OPERATORS = tuple("+-*/()%")
_TOKEN = re.compile(rf"\s*({_NUMBER}|[-+*/()%])")
_SIGNS = str.maketrans({"\u00d7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-"})  # times, divided by, minus, dash


@dataclass(frozen=True)
class Value:
    """A finite number, or None and the reason why there is none."""

    value: float | None
    reason: str | None = None


def same_value(one: float | None, other: float | None, relative: float = 1e-4) -> bool:
    """Whether two values are equal up to a share of the larger one, or to 1e-9; None, nan and inf equal nothing."""
    if one is None or other is None or not (math.isfinite(one) and math.isfinite(other)):
        return False
    return math.isclose(one, other, rel_tol=relative, abs_tol=1e-9)


def evaluate(expression: str) -> Value:
    """The value of numbers, + - * / and parentheses, with the usual precedence; a minus may stand before any operand.

    Numbers may be written 7, 7.0, .7, $7, 1,234 and 50% (0.5). There are no powers, names, functions or exponents.
    """
    try:
        return Value(_Parser(_tokens(expression)).whole())
    except _NoValue as problem:
        return Value(None, problem.args[0])


class _NoValue(Exception):
    """Carries the reason; never leaves this module."""


def _tokens(expression: str) -> list[str]:
    if len(expression) > MAX_LENGTH:
        raise _NoValue(LONG)
    text = expression.translate(_SIGNS).replace("$", "").rstrip()
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _NoValue(NONSENSE)
        tokens.append(found[1])
        at = found.end()
    if not tokens:
        raise _NoValue(EMPTY)
    return tokens


class _Parser:
    """Recursive descent: a sum of products of operands."""

    def __init__(self, tokens: list[str]):
        self.left = tokens[::-1]  # the next one last

    def whole(self) -> float:
        value = self.sum(0)
        if self.left:
            raise _NoValue(UNBALANCED if self.left[-1] == ")" else NONSENSE)
        return value

    def sum(self, depth: int) -> float:
        value = self.product(depth)
        while sign := self.take("+-"):
            right = self.product(depth)
            value = _finite(value + right if sign == "+" else value - right)
        return value

    def product(self, depth: int) -> float:
        value = self.operand(depth)
        while sign := self.take("*/"):
            right = self.operand(depth)
            if sign == "/" and right == 0:
                raise _NoValue(ZERO)
            value = _finite(value * right if sign == "*" else value / right)
        return value

    def operand(self, depth: int) -> float:
        if depth > MAX_DEPTH:
            raise _NoValue(DEEP)
        if self.take("-"):
            return -self.operand(depth + 1)
        if self.take("("):
            value = self.sum(depth + 1)
            if not self.take(")"):
                raise _NoValue(NONSENSE if self.left else UNBALANCED)
        else:
            value = self.number()
        return value / 100 if self.take("%") else value

    def number(self) -> float:
        if not self.left or self.left[-1] in _OPERATORS:
            raise _NoValue(NONSENSE)
        return _finite(float(self.left.pop().replace(",", "")))

    def take(self, allowed: str) -> str:
        """The next token if it is one of these signs, else nothing."""
        return self.left.pop() if self.left and self.left[-1] in allowed else ""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise _NoValue(OVERFLOW)
    return value


_SAID = re.compile(r"\banswer(?:\s+is\b|\s*[:=])", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|\n")
_RUN = re.compile(r"[-0-9.,%()+*/ \t]+")
_LITERAL = re.compile(rf"(?<![A-Za-z_0-9.])((?:(?<![\w)%])-)?(?:{_NUMBER}))%?")
_BEFORE = re.compile(r"(?:[^-0-9(+*/.]|\.(?![0-9]))*")  # words before an expression
_NOT_A_START = re.compile(r"(?:[\s,*/)+%]|\.(?![0-9]))+")
_AND_ANOTHER = re.compile(r"(?:and|or)\s*-?\(*\.?[0-9]", re.IGNORECASE)
# Of letters only those that are no unit: "5m" is a length, "7x" an unknown.
_UNKNOWN = re.compile(r"[0-9)](?:\s*\*\s*)?[nxyz]\b|\b[nxyz]\s*[-+*/]\s*[0-9(]|[-+*/]\s*[nxyz]\b", re.IGNORECASE)
_BOLD = re.compile(r"(?<![0-9)])\*\*|\*\*(?![0-9(])")


def final_number(text: str) -> Value:
    """The number that an answer comes to.

    It is looked for in this order: after the last ``####`` in its line; after the last "answer is" (or "answer:") in
    its sentence; the text itself where it is an expression or ends in an equation; the last number of the text.
    In the first two the first expression counts, in an equation its last side with a number: "84 / 2 = 43" is 43, "5 +
    x = 12" is left unsolved. A lone "50%" is 50: what is asked for is the per cent.
    """
    text = re.sub(r"(?<=[A-Za-z])\$", " ", text[-READ:].translate(_SIGNS)).replace("$", "")
    text = _BOLD.sub("", text).strip()
    _, marked, after = text.rpartition("####")
    if marked:
        return _stated(after.strip().split("\n")[0])
    said = list(_SAID.finditer(text))
    if said:
        return _stated(_SENTENCE_END.split(text[said[-1].end() :].lstrip(" \t\n:"), maxsplit=1)[0])
    return _last(text)


def _stated(sentence: str) -> Value:
    """The first expression of a sentence, or of the last side of its equation that has a number."""
    sides = sentence.split("=")
    at = max((at for at, side in enumerate(sides) if _has_number(side)), default=None)
    if at is None:
        return Value(None, NO_NUMBER)
    if at and _UNKNOWN.search(sides[at - 1]):
        return Value(None, UNSOLVED)
    start = _BEFORE.match(sides[at])
    run = _RUN.match(sides[at], start.end() if start else 0)
    if run is None:
        return Value(None, NONSENSE)
    rest = sides[at][run.end() :]
    if _AND_ANOTHER.match(rest):
        return Value(None, SEVERAL)
    if rest and run[0].rstrip()[-1:] in tuple("+-*/"):  # "2 * x" is not 2
        return Value(None, NONSENSE)
    return _run_value(run[0], of_equation=len(sides) > 1)


def _last(text: str) -> Value:
    """The expression at the end of a text where it is a side of an equation, or all there is; else the last number."""
    runs = [run for run in _RUN.finditer(text) if _has_number(run[0])]
    if not runs:
        return Value(None, NO_NUMBER)
    before, after = text[: runs[-1].start()].rstrip(), text[runs[-1].end() :].lstrip()
    if before.endswith("=") and _UNKNOWN.search(before[:-1].rsplit("=", 1)[-1]):
        return Value(None, UNSOLVED)
    whole = not (before or after)
    if whole or before.endswith("=") or after.startswith("="):
        found = _run_value(runs[-1][0], of_equation=not whole)
        if whole or found.reason not in (NONSENSE, UNBALANCED):
            return found
    literals = _LITERAL.findall(text)
    return evaluate(literals[-1]) if literals else Value(None, NO_NUMBER)


def _run_value(run: str, *, of_equation: bool) -> Value:
    """The value of a run of characters that expressions have, without the punctuation of the sentence around it."""
    start = _NOT_A_START.match(run)
    trimmed = run[start.end() if start else 0 :].rstrip(" \t.,+-*/(")
    if of_equation:  # "(x = 14)" leaves "14)"
        while trimmed.endswith(")") and trimmed.count(")") > trimmed.count("("):
            trimmed = trimmed[:-1].rstrip()
    literal = _LITERAL.fullmatch(trimmed)
    return evaluate(literal[1] if literal else trimmed) if trimmed else Value(None, NONSENSE)


def _has_number(text: str) -> bool:
    return re.search("[0-9]", text) is not None
