"""Draw docs/images/objectives/*.svg: what each divergence of potstill.objectives asks of a student.

    python tools/draw_objectives.py

One figure for each family, from the functions themselves. Above, a vocabulary of two tokens: value and gradient over
the student's probability of the first. Below, a teacher with two bumps over 41 tokens in a row and a student that can
only be one bump of the first one's width: where does each divergence want it? The same versions of torch and
matplotlib draw the same bytes.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from potstill import objectives as ob

Objective = Callable[[Tensor, Tensor], Tensor]

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images" / "objectives"
TEACHER = torch.tensor([0.9, 1 - 0.9], dtype=torch.float64).log()
TOKENS = torch.arange(41, dtype=torch.float64)
BUMPS, SHARES, WIDTH = (12.0, 28.0), (0.6, 0.4), 3.0  # tokens; probability; tokens

# Okabe and Ito's colours, told apart by most eyes, each with a dash of its own.
STYLES: list[dict[str, Any]] = [
    {"color": "#0072B2", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": (0, (6, 2))},
    {"color": "#009E73", "linestyle": (0, (2, 1.5))},
    {"color": "#CC79A7", "linestyle": (0, (7, 2, 1.5, 2))},
    {"color": "#000000", "linestyle": (0, (1, 1.5))},
    {"color": "#E69F00", "linestyle": (0, (4, 1, 1, 1, 1, 1))},
]
LOOK: dict[Any, Any] = {  # matplotlib types each of its keys
    "svg.hashsalt": "potstill",  # ids that do not change from run to run
    "svg.fonttype": "none",
    "savefig.facecolor": "white",  # readable on a dark page, too
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
}
NATS, SHARE, AS_IS, SQUARED_LOGITS = "nats", "0 to 1", "its own unit", "squared logits"
UNITS = {
    "kl": NATS, "jensen_shannon": NATS, "skew": NATS, "bounded": SHARE, "adaptive_kl": NATS, "alpha_beta": AS_IS,
    "interpolated": NATS, "assistant": AS_IS, "logit_matching": SQUARED_LOGITS,
}  # fmt: skip


def families() -> dict[str, dict[str, Objective]]:
    """The figures, and the lines of each: their label and the function of student's and teacher's logits."""
    js = ob.jensen_shannon
    return {
        "kl": {"forward_kl": ob.forward_kl, "reverse_kl": ob.reverse_kl, "jeffreys": ob.jeffreys},
        "jensen_shannon": {
            f"teacher_weight {weight}" + ", rescale" * rescale: partial(js, teacher_weight=weight, rescale=rescale)
            for rescale in (False, True)
            for weight in (0.1, 0.5, 0.9)
        },
        "skew": {
            f"{function.__name__}, skew {skew}": partial(function, skew=skew)
            for function in (ob.skew_forward_kl, ob.skew_reverse_kl)
            for skew in (0.1, 0.5, 0.9)
        },
        "bounded": {"total_variation": ob.total_variation, "squared_hellinger": ob.squared_hellinger},
        "adaptive_kl": {
            "forward_kl": ob.forward_kl,
            "reverse_kl": ob.reverse_kl,
            **{f"adaptive_kl, head_mass {mass}": partial(ob.adaptive_kl, head_mass=mass) for mass in (0.2, 0.5, 0.8)},
        },
        "alpha_beta": {
            f"alpha {alpha}, beta {beta}": partial(ob.alpha_beta, alpha=alpha, beta=beta)
            for alpha, beta in ((1, 0), (0, 1), (0.5, 0.5), (0.2, 0.7), (0.7, 0.2), (1, 1))
        },
        "interpolated": {f"t {t}": partial(ob.interpolated_forward_kl, t=t) for t in (0.0, 0.4, 0.8, 1.0)},
        "assistant": {
            f"anchor {anchor}, alpha {alpha}": partial(ob.assistant_divergence, anchor=anchor, alpha=alpha)
            for anchor in ("teacher", "student")
            for alpha in (-1.0, 1.0, 3.0)
        },
        "logit_matching": {
            f"weights {weights}": partial(ob.logit_matching, weights=weights)
            for weights in ("student", "teacher", "uniform")
        },
    }


def two_token_curve(objective: Objective, student: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The student's probability of token 1, the value, and the gradient to the logit of token 1.

    The teacher gives token 1 a probability of 0.9. ``student`` is from 0.01 to 0.99 where it is not given.
    """
    student = torch.linspace(0.01, 0.99, 99, dtype=torch.float64) if student is None else student
    logits = torch.stack([student, 1 - student], -1).log().requires_grad_()
    value = objective(logits, TEACHER.expand_as(logits))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return student, value.detach(), gradient[:, 0]


def bumps(means: Tensor) -> Tensor:
    """Logits of students that are one bump each: a discretised Gaussian of the teacher's width."""
    return -(((TOKENS - means[..., None]) / WIDTH) ** 2) / 2


def two_bumps() -> Tensor:
    """The logits of the teacher: six tenths around token 12, four tenths around token 28."""
    each = bumps(torch.tensor(BUMPS, dtype=torch.float64)).softmax(-1)
    return (torch.tensor(SHARES, dtype=torch.float64)[:, None] * each).sum(0).log()


def bimodal_curve(objective: Objective) -> tuple[Tensor, Tensor]:
    """The student's mean, from token 6 to token 34, and the value."""
    means = torch.linspace(6, 34, 57, dtype=torch.float64)
    students = bumps(means)
    return means, objective(students, two_bumps().expand_as(students)).detach()


def draw(folder: Path) -> list[Path]:
    """One file for each family; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context(LOOK):
        for name, lines in families().items():
            text = io.StringIO()
            _figure(name, lines).savefig(text, format="svg", metadata={"Date": None, "Creator": None})
            plt.close()
            files.append(folder / f"{name}.svg")
            files[-1].write_text(_smaller(text.getvalue()), encoding="utf-8")
    return files


def _smaller(svg: str) -> str:
    """Half the size: hundredths of a point are enough, and the reader's own font is as good as a list of them."""
    svg = re.sub(r"(\.\d\d)\d+", r"\1", svg)
    return re.sub(r"font-family: [^;]*;", "font-family: sans-serif;", svg)


def _figure(name: str, lines: dict[str, Objective]) -> plt.Figure:
    figure, ((value, slope), (shapes, where)) = plt.subplots(2, 2, figsize=(8, 6.4), layout="constrained")
    shapes.fill_between(TOKENS, two_bumps().softmax(-1), color="#dddddd", linewidth=0)
    for (label, objective), style in zip(lines.items(), STYLES, strict=False):
        student, at_student, gradient = two_token_curve(objective)
        value.plot(student, at_student, label=label, **style)
        slope.plot(student, gradient, **style)
        means, at_mean = bimodal_curve(objective)
        low, high = at_mean.min(), at_mean.max()
        if high - low < 1e-9:  # says nothing anywhere, and so has no best mean
            continue
        best = at_mean.argmin()
        where.plot(means, (at_mean - low) / (high - low), **style)
        where.plot(means[best], 0, marker="o", color=style["color"], clip_on=False, zorder=3)
        shapes.plot(TOKENS, bumps(means[best]).softmax(-1), **style)
    for panel in (value, slope):
        panel.axvline(0.9, color="#666666", linewidth=0.8)
        panel.set(xlim=(0, 1), xlabel="student's probability of token 1 (teacher: 0.9)")
    slope.axhline(0, color="#666666", linewidth=0.8)
    value.set(title="Value, two tokens", ylabel=f"value, {UNITS[name]}", ylim=(0, None))
    slope.set(title="Gradient, two tokens", ylabel="derivative to the logit of token 1")
    shapes.set(title="A teacher with two bumps (grey), the best students", xlim=(0, 40), ylim=(0, None))
    shapes.set(xlabel="token", ylabel="probability")
    where.set(title="Value at the student's mean", xlim=(6, 34), ylim=(0, 1), xlabel="student's mean, token")
    where.set(ylabel="value, from its least (0) to its most (1)")
    figure.legend(loc="outside upper center", ncols=len(lines) if len(lines) <= 4 else 3, frameon=False, handlelength=4)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    for file in draw(parser.parse_args().folder):
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
