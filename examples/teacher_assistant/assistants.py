"""SmolLM2's 30 layers to 8, through an assistant of 15 or at once: the grid, its table and page.

    python examples/teacher_assistant/assistants.py OUT [--jobs N]

Killed and started again it does only what is left. The table and the page are in OUT/sweeps/smollm2. The rows come from
$POTSTILL_DATA; README.md says what was found, and how long it took.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", default="1")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if "POTSTILL_DATA" in os.environ:
        os.environ["POTSTILL_DATA"] = str(Path(os.environ["POTSTILL_DATA"]).resolve())
    if not (given.out / "stories").is_dir():
        subprocess.run([sys.executable, HERE / "stories.py", given.out / "stories"], check=True)
    sweep = [sys.executable, "-m", "potstill", "sweep", str(HERE / "smollm2.yaml"), "--jobs", given.jobs]
    return subprocess.run(sweep, cwd=given.out, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
