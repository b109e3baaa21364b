"""Does distillation pay per second? A distilled student beside one that is fine-tuned for the same time, several times.

    python examples/pays_per_second/pays.py OUT [--pairs starter dolly] [--arms draws states] [--seeds 1 2 3]

Each cell is a run of ``kd`` with ``baseline=equal_time_sft``: a student of 10 of SmolLM2's 30 layers learns for 1, 3
or 10 epochs from a teacher whose words are kept, and the same student is fine-tuned on the same rows for as many
seconds, those of filling the cache included. ``starter``: the embedded teacher and the starter data, which it wrote.
``dolly``: rows of databricks-dolly-15k from $POTSTILL_DATA, and a teacher that was fine-tuned on others of them first.
Killed and started again it does only what is left. It writes OUT/table.md, OUT/cells.json and OUT/pays.png.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

import potstill
from potstill.data.catalogue.loading import data_root
from potstill.errors import PotstillError
from potstill.sweep.statistics import t_mean

EPOCHS = (1, 3, 10)
ROWS = 96  # of each pair, in training
STARTER_ROWS = 378  # that the starter data has for training
TEACHERS_ROWS = 640  # of dolly, for the teacher alone
FIGURES = {"top1_agreement": "agreement, %", "perplexity": "perplexity", "rouge_l": "Rouge-L"}
# What of the loss is compared with the teacher, and in which form its words are kept.
ARMS: dict[str, dict[str, Any]] = {
    "draws": {"signal": "sampled", "ce_weight": 0.5},
    "states": {"ce_weight": 0.5},
    "states-alone": {},
}
RATE = 1e-3  # the demo's
COMMON: dict[str, Any] = {
    "baseline": "equal_time_sft",
    "student.keep_layers": 10,
    "teacher.cache": "auto",
    "batch.size": 4,
    "data.max_validation": 24,
    "evaluation": {"leave_out": ["samples", "untouched"], "generate_examples": 32, "max_new_tokens": 64},
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    pair: str
    arm: str
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder under runs/."""
        return f"{self.pair}-{self.arm}-{self.epochs}-{self.seed}"


# --- The pairs --------------------------------------------------------------------------------------------------------


def starter() -> dict[str, Any]:
    """The embedded teacher, and rows that it wrote."""
    return {"data": "starter", "data.subsample": ROWS / STARTER_ROWS}


def dolly() -> dict[str, Any]:
    """A teacher that was fine-tuned on rows of the task, and others of them for the student."""
    teachers, students = Path("dolly-teacher.jsonl"), Path("dolly-student.jsonl")
    if not students.exists():
        lines = (data_root() / "dolly" / "dev.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        teachers.write_text("".join(lines[:TEACHERS_ROWS]), encoding="utf-8")
        students.write_text("".join(lines[TEACHERS_ROWS : TEACHERS_ROWS + ROWS]), encoding="utf-8")
    rows = {
        "data.format": "dolly",
        "data.heldout": "dolly:valid",
        "data.max_heldout": 60,
        "data.max_response_tokens": 128,
    }
    if not Path("runs/dolly-teacher/report.html").exists():
        own = {
            "student": "smollm2-135m-instruct",
            "batch.size": 8,
            "optimizer.learning_rate": 5e-5,
            "budget.epochs": 1.0,
        }
        cheap = {key: COMMON[key] for key in ("data.max_validation", "evaluation")}
        finish("dolly-teacher", "sft", rows | own | cheap | {"data.path": str(teachers), "baseline": "none"})
    return rows | {"teacher": "runs/dolly-teacher/student", "data.path": str(students)}


PAIRS: dict[str, Callable[[], dict[str, Any]]] = {"starter": starter, "dolly": dolly}


# --- The runs ---------------------------------------------------------------------------------------------------------


def finish(name: str, method: str, settings: dict[str, Any]) -> None:
    """Run it, or go on with it."""
    if Path(f"runs/{name}/recipe.yaml").exists():
        potstill.resume(name)
    else:
        potstill.train(method, run=name, **settings)


def measured(cell: Cell, settings: dict[str, Any]) -> dict[str, Any]:
    """The cell's figures: seconds, and of both students what is in FIGURES. Run where it was not yet."""
    if not Path(f"runs/{cell.name}/report.html").exists():
        # The student of the lowest perplexity on validation rows is taken, of each of the two: looked at some 5 times.
        every = ROWS // COMMON["batch.size"] * max(1, cell.epochs // 5)
        own = {
            "budget.epochs": float(cell.epochs),
            "seed": cell.seed,
            "checkpoint": {"every": every, "best_by": "perplexity"},
        }
        finish(cell.name, "kd", COMMON | ARMS[cell.arm] | settings | own)
    run = Path("runs") / cell.name
    cost = json.loads((run / "cost.json").read_text(encoding="utf-8"))
    models = {"distilled": "student_after", "fine-tuned": "equal_time_sft"}
    evaluated = {who: json.loads((run / "eval" / f"{file}.json").read_text()) for who, file in models.items()}
    figures = {who: {name: found[name] for name in FIGURES} for who, found in evaluated.items()}
    steps = {"distilled": cost["steps"], "fine-tuned": cost["baseline_steps"]}
    return asdict(cell) | {"seconds": cost["training_s"] + cost.get("teacher_cache_s", 0.0), "steps": steps, **figures}


# --- The table --------------------------------------------------------------------------------------------------------


def told(cells: Sequence[dict[str, Any]]) -> str:
    """A row for each pair, arm and number of epochs: means over seeds, distilled / fine-tuned: differences."""
    heads = ["pair", "learns from", "epochs", "seconds", "steps", *FIGURES.values()]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    keys = dict.fromkeys((cell["pair"], cell["arm"], cell["epochs"]) for cell in cells)
    for pair, arm, epochs in keys:
        own = [cell for cell in cells if (cell["pair"], cell["arm"], cell["epochs"]) == (pair, arm, epochs)]
        seconds = f"{mean(cell['seconds'] for cell in own):.0f}"
        steps = " / ".join(f"{mean(cell['steps'][who] for cell in own):.0f}" for who in ("distilled", "fine-tuned"))
        figures = [compared(own, name) for name in FIGURES]
        lines.append(f"| {' | '.join([pair, arm, str(epochs), seconds, steps, *figures])} |")
    return "\n".join(lines) + "\n"


def compared(cells: Sequence[dict[str, Any]], figure: str) -> str:
    """Both means, and the mean of the differences with its interval of 95%, over seeds."""
    both = [mean(cell[who][figure] for cell in cells) for who in ("distilled", "fine-tuned")]
    gaps = [cell["distilled"][figure] - cell["fine-tuned"][figure] for cell in cells]
    found, scale = t_mean(gaps), 100 if figure == "top1_agreement" else 1
    low, high = found.low * scale, found.high * scale
    return f"{both[0] * scale:.1f} / {both[1] * scale:.1f}: {mean(gaps) * scale:+.1f} [{low:.1f}, {high:.1f}]"


def drawn(cells: Sequence[dict[str, Any]], file: Path) -> None:
    """Quality against seconds: a panel for each pair and figure; means as lines, each seed a point."""
    pairs = list(dict.fromkeys(cell["pair"] for cell in cells))
    figure, panels = plt.subplots(len(pairs), len(FIGURES), figsize=(4 * len(FIGURES), 3 * len(pairs)), squeeze=False)
    for row, pair in zip(panels, pairs, strict=True):
        for panel, (name, title) in zip(row, FIGURES.items(), strict=True):
            for arm in dict.fromkeys(cell["arm"] for cell in cells if cell["pair"] == pair):
                own = [cell for cell in cells if (cell["pair"], cell["arm"]) == (pair, arm)]
                for who, style in (("distilled", "-"), ("fine-tuned", "--")):
                    _line(panel, own, who, name, style, label=f"{who}, {arm}" if who == "distilled" else who)
            panel.set(title=f"{pair}: {title}", xlabel="seconds of training", xscale="log")
            panel.xaxis.set_major_locator(FixedLocator([30, 60, 120, 240, 480]))
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.xaxis.set_minor_locator(NullLocator())
    panels[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def _line(panel: Any, cells: Sequence[dict[str, Any]], who: str, name: str, style: str, label: str) -> None:
    """One student's figure over seconds."""
    at = sorted({cell["epochs"] for cell in cells})
    groups = [[cell for cell in cells if cell["epochs"] == epochs] for epochs in at]
    seconds = [mean(cell["seconds"] for cell in group) for group in groups]
    scale = 100 if name == "top1_agreement" else 1
    (line,) = panel.plot(
        seconds, [scale * mean(cell[who][name] for cell in group) for group in groups], style, label=label
    )
    points = [(cell["seconds"], scale * cell[who][name]) for cell in cells]
    panel.scatter(*zip(*points, strict=True), s=8, color=line.get_color())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["draws"], help="how the teacher's words are kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", nargs="+", type=int, default=EPOCHS)
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate; another one has an OUT of its own")
    given = parser.parse_args()
    if "POTSTILL_DATA" in os.environ:
        os.environ["POTSTILL_DATA"] = str(Path(os.environ["POTSTILL_DATA"]).resolve())
    given.out.mkdir(parents=True, exist_ok=True)
    os.chdir(given.out)
    cells = []
    for pair in given.pairs:
        settings = PAIRS[pair]() | {"optimizer.learning_rate": given.rate}
        for arm, epochs, seed in product(given.arms, given.epochs, given.seeds):
            cells.append(measured(Cell(pair, arm, epochs, seed), settings))
            Path("cells.json").write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
            Path("table.md").write_text(told(cells), encoding="utf-8")
    drawn(cells, Path("pays.png"))
    print(told(cells))


if __name__ == "__main__":
    try:
        main()
    except PotstillError as error:
        raise SystemExit(f"error: {error}") from None
