"""A comparison in a few plain sentences, which never claim more than its cells do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from potstill.evaluation.metrics.significance import GapClosed
from potstill.reporting.comparison.table import SURE, Against, Cell, Entry, Measure, Table
from potstill.reporting.formats import MISSING, number, percent, significant
from potstill.reporting.text import one_line

MANY = 3  # models with the same best figure: more are counted, not named
Found: TypeAlias = list[tuple[Entry, Cell]]


def verdict(table: Table) -> list[str]:
    """Up to four sentences: which student kept most of the teacher, whether it beats the baseline, and the whole table.

    "By the first measure" is by the first that a trained model has a finite figure of.
    """
    for measure, cells in zip(table.measures, table.cells, strict=True):
        trained = [(e, cells[e.key]) for e in table.entries if e.is_trained and e.key in cells]
        if finite := [(entry, cell) for entry, cell in trained if math.isfinite(cell.mean)]:
            found, apart = _on_the_same(measure, finite)
            best, sentence = _by_share(table, measure, found) or _by_mean(measure, found)
            return [sentence, *apart, *_against_baseline(table, measure, best, found), *_whole(table)]
    return ["No trained student has been measured."]


# --- Figures as they are shown ----------------------------------------------------------------------------------------


def shown(measure: Measure, value: float) -> str:
    """A mean in its shown unit; a dash where it is not finite."""
    if not math.isfinite(value):
        return MISSING
    return percent(value) if measure.unit == "percent" else significant(measure.shown(value))


def shown_difference(measure: Measure, value: float) -> str:
    """A difference of means with its sign: in points of a percentage, of perplexities as the factor between them."""
    if not math.isfinite(value):
        return MISSING
    if measure.unit == "perplexity":
        return f"\u00d7{significant(measure.shown(value), 3)}"
    sign = "+" if value > 0 else ""
    return f"{sign}{significant(measure.shown(value), 3)}" + (" points" if measure.unit == "percent" else "")


def shown_share(share: float) -> str:
    """A share of the gap."""
    return f"{significant(100 * share, 3)}%" if math.isfinite(share) else MISSING


def interval(low: str, high: str) -> str:
    """[low, high], or nothing where either end is not finite."""
    return "" if MISSING in (low, high) else f"[{low}, {high}]"


def sureness(measure: Measure, against: Against) -> str:
    """Whether a difference from the baseline is more than chance, and which way."""
    mean = against.difference.mean
    if not against.is_sure or not mean or not math.isfinite(mean):
        return "not sure"
    return "surely better" if (mean > 0) == (measure.better == "higher") else "surely worse"


def is_gain(measure: Measure, gap: GapClosed) -> bool:
    """Whether the teacher is better than the untouched student: else to close the gap is nothing to be had."""
    return gap.gap > 0 if measure.better == "higher" else gap.gap < 0


# --- Sentences --------------------------------------------------------------------------------------------------------


def _on_the_same(measure: Measure, found: Found) -> tuple[Found, list[str]]:
    """The models that were measured on the first one's examples, and a word about the others, who are not ranked."""
    asked = {entry.key: measure.scores.get(entry.key, {}).keys() for entry, _ in found}
    first = asked[found[0][0].key]
    same = [(entry, cell) for entry, cell in found if asked[entry.key] == first]
    others = [entry for entry, _ in found if asked[entry.key] != first]
    if not others:
        return same, []
    return same, [f"Measured on other examples, and so not ranked with these: {_names(others)}."]


def _by_share(table: Table, measure: Measure, found: Found) -> tuple[Found, str] | None:
    """Who closed most of the gap; None where no share has an interval."""
    shares = [
        (entry, cell, cell.gap)
        for entry, cell in found
        if cell.gap and cell.gap.note is None and number(cell.gap.share) is not None and is_gain(measure, cell.gap)
    ]
    if not shares:
        return None
    shares.sort(key=lambda each: -each[2].share)
    most = shares[0][2]
    best = [(entry, cell) for entry, cell, gap in shares if gap.share == most.share]
    said = f"{_names([entry for entry, _ in best])} {_closed(most, len(best), len(shares))}"
    if len(shares) > len(best) and most.share > 0:
        said += _next(table, best[0][0], shares[len(best)][0], shares[len(best)][2])
    return best, f"By {one_line(measure.name)}, {said}."


def _closed(gap: GapClosed, num_best: int, num_all: int) -> str:
    """The predicate of the best, with its share."""
    share, between = _share(gap), "the gap between untouched student and teacher"
    if gap.share <= 0:
        also = ", and no other model closed more" if num_all > num_best else ""
        return f"closed none of {between} ({share}){also}"
    doubt = ", which may be none" if gap.low <= 0 else ""
    if num_all == 1:
        return f"closed {share} of {between}{doubt}"
    largest = "the largest share" if num_all > num_best else "the same share"
    return f"closed {largest} of {between}: {share}{' each' if num_best > 1 else ''}{doubt}"


def _next(table: Table, best: Entry, entry: Entry, gap: GapClosed) -> str:
    """The one that comes after. Only differences from the baseline are tested: those are for another sentence."""
    tested = table.baseline is not None and table.baseline.key in (best.key, entry.key)
    return f"; next is {one_line(entry.name)} with {_share(gap)}" + ("" if tested else " (the order is not tested)")


def _share(gap: GapClosed) -> str:
    return f"{shown_share(gap.share)} {interval(shown_share(gap.low), shown_share(gap.high))}".rstrip()


def _by_mean(measure: Measure, found: Found) -> tuple[Found, str]:
    """Whose mean is best, and why there is no share of a gap."""
    target = _ranked(measure, found)[0][1].mean
    best = [(entry, cell) for entry, cell in found if cell.mean == target]
    names, cell = _names([entry for entry, _ in best]), best[0][1]
    figure = f"{shown(measure, target)} {_around(measure, cell)}".rstrip()
    said = f"has {figure}" if len(found) == 1 else f"the best mean of the {len(found)} trained models: {figure}"
    has = "" if len(found) == 1 else "has " if len(best) == 1 else "have "
    doubt = f"no share of the gap to the teacher is given, {_why(measure, found)}"
    return best, f"By {one_line(measure.name)}, {names} {has}{said}; {doubt}."


def _why(measure: Measure, found: Found) -> str:
    gaps = [cell.gap for _, cell in found if cell.gap]
    if any(gap.note is not None for gap in gaps):
        return "for there may be no gap"
    if any(not is_gain(measure, gap) for gap in gaps):
        return "for the teacher is no better than the untouched student by this measure"
    return "for teacher or untouched student was not measured on the same examples"


def _around(measure: Measure, cell: Cell) -> str:
    return interval(*(shown(measure, end) for end in cell.interval))


def _against_baseline(table: Table, measure: Measure, best: Found, found: Found) -> Iterator[str]:
    """Whether the best ones beat the baseline, one sentence each; or the next, where the baseline is the best."""
    if table.baseline is None:
        yield "No baseline was chosen, so no difference between models has been tested."
        return
    base = table.baseline.key
    others = [(entry, cell) for entry, cell in best if entry.key != base][:MANY]
    if len(others) < min(MANY, len(best)):
        yield f"{one_line(table.baseline.name)} is the baseline itself."
        others = others or _ranked(measure, [(entry, cell) for entry, cell in found if entry.key != base])[:1]
    for entry, cell in others:
        yield _compared(measure, entry, cell.against, one_line(table.baseline.name))


def _ranked(measure: Measure, found: Found) -> Found:
    """The best mean first."""
    return sorted(found, key=lambda each: each[1].mean, reverse=measure.better == "higher")


def _compared(measure: Measure, entry: Entry, against: Against | None, baseline: str) -> str:
    """What the difference of a model from the baseline is worth."""
    name = one_line(entry.name)
    if against is None:
        return f"{name} and the baseline ({baseline}) have no examples in common, so they are not compared."
    how = sureness(measure, against)
    said = "is not surely better or worse" if how == "not sure" else f"is {how}"
    return f"{name} {said} than the baseline ({baseline}): {difference(measure, against)}."


def difference(measure: Measure, against: Against) -> str:
    """A difference with its interval and p."""
    seen = against.difference
    if not math.isfinite(seen.mean):
        return "the difference is not finite"
    ends = interval(shown_difference(measure, seen.low), shown_difference(measure, seen.high))
    return f"{shown_difference(measure, seen.mean)} {ends}".rstrip() + f", {p_value(against)} after Holm's correction"


def p_value(against: Against) -> str:
    """p after Holm's correction, three digits: 0.0496 is sure and 0.0504 is not."""
    return f"p = {against.p_holm:.3g}"


def _whole(table: Table) -> Iterator[str]:
    """How many differences of trained models are sure, where there are several."""
    said = [
        sureness(measure, cell.against)
        for measure, cells in zip(table.measures, table.cells, strict=True)
        for entry in table.entries
        if entry.is_trained and (cell := cells.get(entry.key)) and cell.against
    ]
    if len(said) < 2:
        return
    if set(said) == {"not sure"}:
        yield f"None of the {len(said)} differences between trained models and the baseline is sure."
        yield from _too_few(table)
        return
    better, worse, unsure = (said.count(how) for how in ("surely better", "surely worse", "not sure"))
    yield (
        f"Differences between trained models and the baseline: {better} surely for the better, {worse} surely for the "
        f"worse, {unsure} not sure."
    )


def _too_few(table: Table) -> Iterator[str]:
    """That no difference could have been sure, where there are too few examples for so many comparisons."""
    tested = [cell.against.num for cells in table.cells for cell in cells.values() if cell.against]
    most = max(tested, default=0)
    if tested and len(tested) * 2.0 ** (1 - most) >= SURE:
        yield (
            f"None could have been: with {most} examples p is at least {2.0 ** (1 - most):.2g}, and Holm's correction "
            f"is over {len(tested)} comparisons, those of untouched students among them. Measure on more examples."
        )


def _names(entries: Sequence[Entry]) -> str:
    names = [one_line(entry.name) for entry in entries]
    if len(names) > MANY:
        return f"{names[0]} and {len(names) - 1} others"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
