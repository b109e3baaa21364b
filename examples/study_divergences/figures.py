"""Three figures: which modes each method covers, the declared differences, and the error that builds up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from claims import Figures, Verdict
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report import name_of
from settings import TEACHER_ITSELF
from store import published

COLOURS = {"data": "tab:blue", "teacher": "tab:green", "student": "tab:red", "": "black"}


def draw_figures(
    out: Path,
    figures: Mapping[int, Figures],
    verdicts: Sequence[Verdict],
    prefixes: Mapping[str, str],
    lengths: Sequence[int],
) -> None:
    """Write modes.png, claims.png and exposure.png into a folder. ``prefixes``: of each method, who wrote them."""
    _save(out / "modes.png", (7, 5), lambda axes: modes(axes, figures[min(figures)], prefixes))
    ruled = sum(bool(outcome.values) for verdict in verdicts for outcome in verdict.outcomes)
    _save(out / "claims.png", (9, 1.5 + 0.3 * ruled), lambda axes: differences(axes, verdicts))
    _save(out / "exposure.png", (7, 5), lambda axes: exposure_errors(axes, figures[min(figures)], prefixes, lengths))


def modes(axes: Axes, figures: Figures, prefixes: Mapping[str, str]) -> None:
    """R_llh against R_cvg, a point for each training seed."""
    for name, seeds in figures.items():
        rows = [row for row in seeds.values() if "teacher_nll_own_nats" in row]
        if not rows or name == TEACHER_ITSELF:
            continue
        x = [row["teacher_nll_own_nats"] for row in rows]
        y = [row["student_nll_teachers_nats"] for row in rows]
        axes.scatter(x, y, s=14, color=COLOURS[prefixes.get(name, "")])
        axes.annotate(name, (fmean(x), fmean(y)), xytext=(5, 4), textcoords="offset points", fontsize=8)
    for label, colour in COLOURS.items():
        axes.scatter([], [], s=14, color=colour, label=f"{label} prefixes" if label else "untrained by a method")
    axes.set_xlabel("R_llh: teacher's NLL of the student's samples, nats")
    axes.set_ylabel("R_cvg: student's NLL of the teacher's samples, nats")
    axes.legend(fontsize=8)


def differences(axes: Axes, verdicts: Sequence[Verdict]) -> None:
    """Every ruled difference in units of its mean's size: seeds, 95% interval, and the margin."""
    labels: list[str] = []
    for verdict in verdicts:
        for outcome in verdict.outcomes:
            if not outcome.values or not outcome.mean:
                continue
            scale, row = abs(outcome.mean), len(labels)
            low, high = (edge / scale for edge in outcome.interval)
            margin = outcome.comparison.margin / scale * (-1 if outcome.comparison.direction == "lower" else 1)
            axes.plot([low, high], [row, row], color="black", linewidth=1)
            seeds = [value / scale for value in outcome.values]
            axes.scatter(seeds, [row] * len(seeds), s=10, color="tab:blue")
            axes.scatter([margin], [row], marker="|", s=120, color="tab:red")
            labels.append(f"{verdict.claim.id} (t{verdict.teacher}) {name_of(outcome)}  [{outcome.mean:+.3g}]")
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("difference / |mean difference|; black: 95% interval, red: the margin to be passed", fontsize=8)


def exposure_errors(axes: Axes, figures: Figures, prefixes: Mapping[str, str], lengths: Sequence[int]) -> None:
    """ExAccErr by length, mean over seeds; dashed on the student's own prefixes."""
    for name, seeds in figures.items():
        if name not in prefixes:
            continue
        means = [fmean(row[f"excess_error_percent_{length}"] for row in seeds.values()) for length in lengths]
        style = "--" if prefixes[name] == "student" else "-"
        axes.plot(lengths, means, style, marker="o", markersize=3, linewidth=1, label=name)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set_xlabel("tokens of the response")
    axes.set_ylabel("ExAccErr, per cent (its sign means little at this size; compare pairs)")
    axes.legend(fontsize=7, ncols=2)


def _save(path: Path, size: tuple[float, float], draw: Callable[[Axes], None]) -> None:
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    with published(path) as draft:
        figure.savefig(draft, format="png", dpi=120)
