"""What of a teacher's inside helps a narrower student: two grids, their tables and pages.

    python examples/selective_features/selective_features.py OUT [tinystories] [smollm2] [--jobs N]

Without names both are run. Killed and started again it does only what is left. Tables and pages are in OUT/sweeps/NAME.
The rows come from $POTSTILL_DATA; README.md says what was found, and how long it took.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GRIDS = ("tinystories", "smollm2")
POTSTILL = (sys.executable, "-m", "potstill")
TEACHER = {  # six times through the stories, from weights that are drawn
    "run": "teacher",
    "student.kind": "fresh",
    "student.model": "models/d128",
    "data": "stories/train.jsonl",
    "data.heldout": "stories/valid.jsonl",
    "data.max_response_tokens": "192",
    "budget.epochs": "6",
    "batch": "16",
    "optimizer.learning_rate": "2e-3",
    "checkpoint.best_by": "perplexity",
    "checkpoint.every": "200",
    "evaluation.generate_examples": "4",
    "evaluation.max_new_tokens": "32",
    "baseline": "none",
    "dtype": "float32",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("grids", nargs="*", default=[], choices=GRIDS, metavar="GRID")
    parser.add_argument("--jobs", default="1")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if "POTSTILL_DATA" in os.environ:
        os.environ["POTSTILL_DATA"] = str(Path(os.environ["POTSTILL_DATA"]).resolve())
    worst = 0
    for grid in given.grids or GRIDS:
        if grid == "tinystories":
            make_teacher(given.out)
        sweep = [*POTSTILL, "sweep", str(HERE / f"{grid}.yaml"), "--keep", "nothing", "--jobs", given.jobs]
        worst = max(worst, subprocess.run(sweep, cwd=given.out, check=False).returncode)
    return worst


def make_teacher(out: Path) -> None:
    """The rows, the two architectures, and the wide one trained; what is there already stays."""
    if not (out / "stories").is_dir():
        stories = HERE.parent / "teacher_assistant" / "stories.py"
        subprocess.run([sys.executable, stories, out / "stories"], check=True)
    if not (out / "models").is_dir():
        made = [sys.executable, str(HERE / "two_widths.py"), str(out / "models"), str(out / "stories" / "train.jsonl")]
        subprocess.run(made, check=True)
    if (out / "runs" / "teacher" / "student").is_dir():
        return
    begun = (out / "runs" / "teacher").is_dir()
    command = (
        ["resume", "teacher"] if begun else ["train", "sft", *(f"{key}={value}" for key, value in TEACHER.items())]
    )
    subprocess.run([*POTSTILL, *command], cwd=out, check=True)


if __name__ == "__main__":
    sys.exit(main())
