"""What a benchmark finds, how it is kept, and when it has become worse than it was."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

FALLEN = 0.9  # a ratio under this share of the recorded one has fallen
MARKS = ("<!-- results -->", "<!-- end of results -->")


@dataclass(frozen=True)
class Result:
    """One comparison. The less the better: ``ratio`` is theirs over ours, 2 where ours takes half of theirs.

    Args:
        benchmark: its number, as "B3". case: what was compared. unit: of the figures.
        ours: potstill's figures, one for each repeat.
        against: whom it is compared with. theirs: that one's figures.
        kind: a peer is another program, a floor what no program could go under, a limit what we allow ourselves.
        target: the least ratio that is wanted.
    """

    benchmark: str
    case: str
    unit: str
    ours: tuple[float, ...]
    against: str
    theirs: tuple[float, ...]
    kind: Literal["peer", "floor", "limit"] = "peer"
    target: float | None = None

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return median(self.theirs) / median(self.ours)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a result is known by from run to run."""
        return self.benchmark, self.case, self.unit, self.against

    @property
    def misses(self) -> bool:
        return self.target is not None and self.ratio < self.target


def fallen(now: Sequence[Result], recorded: Sequence[Result]) -> list[str]:
    """What has become worse: a line for each ratio under 0.9 of the recorded one of the same comparison."""
    before = {result.key: result.ratio for result in recorded}
    return [
        f"{result.benchmark} {result.case}: {result.ratio:.2f} of {result.against}, recorded {before[result.key]:.2f}"
        for result in now
        if result.key in before and result.ratio < FALLEN * before[result.key]
    ]


def table(results: Sequence[Result]) -> str:
    """The results in Markdown: medians, with the best repeat behind our own."""
    lines = ["| | case | unit | floor | peer | ours (best) | ratio | target |", "|---|---|---|---|---|---|---|---|"]
    lines += [_row(result) for result in results]
    return "\n".join(lines)


def _row(result: Result) -> str:
    other = f"{_figure(median(result.theirs))} {result.against}"
    floor, peer = (other, "") if result.kind == "floor" else ("", other)
    ours = f"{_figure(median(result.ours))} ({_figure(min(result.ours))})"
    target = "" if result.target is None else f">= {result.target:g}{', missed' if result.misses else ''}"
    cells = (result.benchmark, result.case, result.unit, floor, peer, ours, f"{result.ratio:.2f}", target)
    return f"| {' | '.join(cells)} |"


def _figure(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# --- Kept -------------------------------------------------------------------------------------------------------------


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def save(folder: Path, date: str, machine: dict[str, Any], results: Sequence[Result], fell: Sequence[str] = ()) -> Path:
    """Write a run's results to ``<date>_<machine>.json``, and say where.

    Benchmarks that were not run keep what the file has of them from earlier on the same day. Results that have fallen
    go to a file of their own, which nothing is compared with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{date}_{slug(machine['name'])}{'_fallen' if fell else ''}.json"
    run = {result.benchmark for result in results}
    kept = [result for result in read(path) if result.benchmark not in run]
    together = sorted([*kept, *results], key=lambda result: result.benchmark)
    told = {"date": date, "machine": machine, "fallen": list(fell), "results": [_told(one) for one in together]}
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[Result]:
    """The results in a file; none where there is no file."""
    if not path.exists():
        return []
    return [_result(told) for told in json.loads(path.read_text(encoding="utf-8"))["results"]]


def _result(told: dict[str, Any]) -> Result:
    figures = {"ours": tuple(told["ours"]), "theirs": tuple(told["theirs"])}
    return Result(**{name: value for name, value in told.items() if name != "ratio"} | figures)


def recorded(folder: Path, machine: str) -> list[Result]:
    """The latest result of each comparison on a machine, over all its files."""
    latest: dict[tuple[str, str, str, str], Result] = {}
    for path in sorted(folder.glob(f"????-??-??_{slug(machine)}.json")):
        latest |= {result.key: result for result in read(path)}
    return list(latest.values())


def put_into(text: str, told: str) -> str:
    """A page with what stands between its marks replaced. Raises: ValueError for a page without them."""
    begin, end = MARKS
    if begin not in text or end not in text:
        raise ValueError(f"the page has no {begin} and {end}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{told}\n{end}{rest.split(end, 1)[1]}"


def _told(result: Result) -> dict[str, Any]:
    """With its ratio, for whoever reads the file."""
    return asdict(result) | {"ratio": round(result.ratio, 4)}
