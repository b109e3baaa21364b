"""Figures of answers that are one of a few options, and which option a written answer names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from potstill.evaluation.metrics.text import normalised

Rule = Literal["exact", "beginning", "answer is", "letter", "ambiguous", "nothing"]


@dataclass(frozen=True)
class Named:
    """The option an answer names, None where it names none or several, and the rule that decided."""

    option: int | None
    rule: Rule


@dataclass(frozen=True)
class LabelScores:
    """Of one label, from 0 to 1, nan where undefined: precision if never given, recall if never gold, f1 if neither."""

    precision: float
    recall: float
    f1: float
    num_gold: int


@dataclass(frozen=True)
class CalibrationBin:
    """Answers whose confidence is above ``low`` and at most ``high``; means are nan where there are none."""

    low: float
    high: float
    num: int
    mean_confidence: float
    accuracy: float


def confusion_matrix(
    gold: Sequence[str], answers: Sequence[str | None], labels: Sequence[str]
) -> Int[np.ndarray, "label answer"]:
    """Counts of gold labels by answers. There is a row for each label, and one column more than labels.

    Args:
        gold: of each example, one of ``labels``.
        answers: of each example; None, and whatever is no label, is counted in the last column.
        labels: all of them, in the order of rows and columns.
    Raises: ValueError where a gold label is unknown, labels repeat, or the counts differ.
    """
    places = {label: at for at, label in enumerate(labels)}
    if len(places) != len(labels) or not set(gold) <= places.keys():
        raise ValueError(f"labels {list(labels)} must differ, and have all gold labels {sorted(set(gold))}")
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for one, answer in zip(gold, answers, strict=True):
        counts[places[one], len(labels) if answer is None else places.get(answer, len(labels))] += 1
    return counts


def accuracy(confusion: Int[np.ndarray, "label answer"]) -> float:
    """Share of examples whose answer is the gold label; an answer that is no label is wrong. nan without examples."""
    return _ratio(np.trace(confusion[:, :-1]), confusion.sum())


def label_scores(confusion: Int[np.ndarray, "label answer"]) -> list[LabelScores]:
    """Precision, recall and F1 of each label, in the order of the rows."""
    found = []
    for at, row in enumerate(confusion):
        right, num_gold, num_given = row[at], row.sum(), confusion[:, at].sum()
        f1 = _ratio(2 * right, num_gold + num_given)
        found.append(LabelScores(_ratio(right, num_given), _ratio(right, num_gold), f1, int(num_gold)))
    return found


def macro_f1(confusion: Int[np.ndarray, "label answer"]) -> float:
    """Mean F1 over the labels that are gold or given somewhere; nan where there are none."""
    there = [scores.f1 for scores in label_scores(confusion) if not math.isnan(scores.f1)]
    return math.fsum(there) / len(there) if there else math.nan


def calibration_error(confidences: Sequence[float], right: Sequence[bool], num_bins: int = 15) -> float:
    """Expected calibration error, 0 to 1: the mean over examples of their bin's |accuracy - confidence|; nan for none.

    Args:
        confidences: the probability of the option that was chosen, 0 to 1, of each example.
        right: whether it was the gold one.
        num_bins: of equal width. The figure depends on it.
    Raises: ValueError where a confidence is not from 0 to 1, the counts differ, or there is no bin.
    Source: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    there = [found for found in calibration_bins(confidences, right, num_bins) if found.num]
    gaps = [found.num * abs(found.accuracy - found.mean_confidence) for found in there]
    return _ratio(math.fsum(gaps), len(confidences))


def calibration_bins(confidences: Sequence[float], right: Sequence[bool], num_bins: int = 15) -> list[CalibrationBin]:
    """What ``calibration_error`` is made of, for a reliability diagram; confidence 0 is in the first bin."""
    sure, hit = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    if len(sure) != len(hit) or num_bins < 1 or not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(f"{len(sure)} confidences from 0 to 1, {len(hit)} answers, {num_bins} bins: one does not fit")
    edges = np.arange(num_bins + 1) / num_bins
    place = np.searchsorted(edges[1:], sure, side="left")
    bins = [(sure[place == at], hit[place == at]) for at in range(num_bins)]
    return [
        CalibrationBin(low, high, len(some), _ratio(some.sum(), len(some)), _ratio(hits.sum(), len(some)))
        for low, high, (some, hits) in zip(edges[:-1].tolist(), edges[1:].tolist(), bins, strict=True)
    ]


def option_probabilities(
    log_likelihoods: Sequence[float], lengths: Sequence[int] | None = None
) -> Float[np.ndarray, " option"]:
    """Softmax over one example's options of their log-likelihoods, full or for each unit of length.

    Args:
        log_likelihoods: of each option's text after the prompt, in nats, summed over its tokens; -inf is probability 0.
        lengths: of each option, in tokens or bytes, to divide by; without them long options are the less likely ones.
    Returns: probabilities; nan where every option is impossible.
    Raises: ValueError without options, for nan or +inf, and for a length below 1 or a missing one.
    """
    scores = np.asarray(log_likelihoods, dtype=float)
    if not len(scores) or np.isnan(scores).any() or (scores == np.inf).any():
        raise ValueError(f"log-likelihoods {scores.tolist()}: give one or more, below infinity")
    if lengths is not None:
        if len(lengths) != len(scores) or min(lengths) < 1:
            raise ValueError(f"{len(scores)} options of lengths {list(lengths)}: give each one of 1 or more")
        scores = scores / np.asarray(lengths)
    if scores.max() == -np.inf:
        return np.full(len(scores), np.nan)
    weights = np.exp(scores - scores.max())
    probabilities: Float[np.ndarray, " option"] = weights / weights.sum()
    return probabilities


def named_option(answer: str, options: Sequence[str]) -> Named:
    """Which option a written answer names. The first of these rules that finds any decides:

    the whole answer is an option, up to case, punctuation and an article; it begins with one, as whole words, the
    longest that fits; it says "answer is" (or "answer:") and an option or its letter, the last time it says so; it
    begins with a letter as in "(b)", "b)" or "b.", is one, or has letters in parentheses and all of them are the same.
    It is ambiguous, and a failure, where a rule finds several ("b or c"), where the beginning and "answer is" differ,
    and where a letter stands before the text of another option. What the answer goes on with, an invented next example
    for instance, is to be cut off before. Known limit: "no one knows" begins with the option "no".

    Args:
        answer: as generated. options: in the order of their letters, (a) first; at most 26 have one.
    """
    exact = _exact(answer, options)
    if exact:
        return _named(exact, "exact")
    beginning, said = _at_start(answer, options), _said(answer, options)
    if beginning:
        return _named(beginning | said, "beginning")
    if said:
        return _named(said, "answer is")
    letters = _lettered(answer, options) or _in_parentheses(answer, len(options))
    return _named(letters, "letter") if letters else Named(None, "nothing")


_SAID = re.compile(r"\banswer(?:\s+is\b|\s*:)\s*:?", re.IGNORECASE)
_LETTER = re.compile(r"\s*(?:\(\s*([a-z])\s*\)|([a-z])(?:\)|[.:](?=\s|$)|\s*[.!]?\s*$))", re.IGNORECASE)
_OTHER = re.compile(r"\s*(?:/|,?\s*\b(?:or|and)\b)\s*", re.IGNORECASE)
_ARTICLE = re.compile(r"^\s*(?:the|an?)\s+(?=\S)", re.IGNORECASE)
_MARKS = " \t\n\"'`*([{<\u201c\u2018"  # the last two are opening quotes


def _exact(answer: str, options: Sequence[str]) -> set[int]:
    """Options equal to the answer as written, else those that normalise to the same, with or without its article."""
    same = {at for at, option in enumerate(options) if option.strip() == answer.strip() != ""}
    plain = {normalised(answer), normalised(_ARTICLE.sub("", answer, count=1))} - {""}
    return same or {at for at, option in enumerate(options) if normalised(option) in plain}


def _said(answer: str, options: Sequence[str]) -> set[int]:
    """What stands after the last "answer is": options, or their letters."""
    found = list(_SAID.finditer(answer))
    if not found:
        return set()
    rest = answer[found[-1].end() :]
    return _at_start(rest, options) or _at_start(_ARTICLE.sub("", rest, count=1), options) or _lettered(rest, options)


def _at_start(text: str, options: Sequence[str]) -> set[int]:
    """Options that a text begins with: the longest there, and those that "or" adds to it."""
    longest, rest = _longest(text, options)
    return longest | _added(rest, options) if longest else set()


def _lettered(text: str, options: Sequence[str]) -> set[int]:
    """The option whose letter a text begins with, those whose text stands after it, and those that "or" adds."""
    text = text.replace("**", "").strip()
    letter = _LETTER.match(text)
    place = ord((letter[1] or letter[2]).lower()) - ord("a") if letter else len(options)
    if letter is None or place >= len(options):
        return set()
    spelled, rest = _longest(text[letter.end() :], options)
    return ({place} if place in spelled else {place} | spelled) | _added(rest, options)


def _added(text: str, options: Sequence[str]) -> set[int]:
    joined = _OTHER.match(text)
    if joined is None:
        return set()
    return _at_start(text[joined.end() :], options) or _lettered(text[joined.end() :], options)


def _longest(text: str, options: Sequence[str]) -> tuple[set[int], str]:
    """The longest options a text begins with, after quotes and brackets, and the text that follows."""
    bare = text.lstrip(_MARKS)
    ends = {at: found.end() for at, option in enumerate(options) if (found := _whole(option).match(bare))}
    furthest = max(ends.values(), default=0)
    return {at for at, end in ends.items() if end == furthest}, bare[furthest:] if ends else text


def _whole(option: str) -> re.Pattern[str]:
    """An option as whole words, whatever its case and white space; one without any matches nothing."""
    words = r"\s+".join(map(re.escape, option.split()))
    return re.compile(rf"(?<!\w){words}(?!\w)" if words else r"(?!)", re.IGNORECASE)


def _in_parentheses(answer: str, num_options: int) -> set[int]:
    places = {ord(letter.lower()) - ord("a") for letter in re.findall(r"\(\s*([a-zA-Z])\s*\)", answer)}
    return {place for place in places if place < num_options}


def _named(found: set[int], rule: Rule) -> Named:
    return Named(next(iter(found)), rule) if len(found) == 1 else Named(None, "ambiguous")


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
