"""Distilling step-by-step, measured: three grids, their tables and figures.

    python examples/step_by_step/run.py OUT [animals] [svamp] [esnli] [--jobs N]

Without names all three are run. Killed and started again it does only what is left. Tables, figures and pages are in
OUT/sweeps/NAME. The rows come from $POTSTILL_DATA; README.md says what was found, and how long it took.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GRIDS = ("animals", "svamp", "esnli")


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
        if grid == "animals" and not (given.out / "animals" / "llama").is_dir():
            subprocess.run([sys.executable, HERE / "animals.py", given.out / "animals"], check=True)
        sweep = [sys.executable, "-m", "potstill", "sweep", str(HERE / f"{grid}.yaml"), "--keep", "nothing"]
        worst = max(worst, subprocess.run([*sweep, "--jobs", given.jobs], cwd=given.out, check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
