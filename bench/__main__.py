"""Runs the benchmarks, prints and keeps what they find, and says what has become worse.

    python -m bench [--only b3,b5] [--repeats 3] [--quick]      or: make bench

One thread, processor seconds, all subjects in turns in one process, equal results asserted first. Results go to
bench/results/<date>_<machine>.json and the table into bench/README.md; a ratio under 0.9 of the latest recorded one of
this machine makes the command say so and exit 1. --quick runs small shapes once, to see that all works: no figure of it
is worth keeping, and none is kept; nor is any of fewer than 3 repeats.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch

from bench import measuring, results
from bench.measuring import Effort, LeftOut
from bench.results import Result

MODULES = {
    "B1": "offpolicy_cached",
    "B2": "offpolicy_exact",
    "B3": "loss_head",
    "B4": "onpolicy_step",
    "B5": "rollouts_ragged",
    "B6": "peak_memory",
    "B7": "teacher_cache",
    "B8": "packed_rows",
    "B9": "outside_compute",
}
HERE = Path(__file__).parent
ENOUGH = 3  # repeats of what is kept


def main() -> int:
    given = _parser().parse_args()
    names = [name.strip().upper() for name in given.only.split(",")] if given.only else list(MODULES)
    if unknown := [name for name in names if name not in MODULES]:
        sys.exit(f"there is no benchmark {', '.join(unknown)}: choose from {', '.join(MODULES)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of the peers; ours are tested to have none
    found = run(names, Effort(1 if given.quick else given.repeats, given.quick))
    machine = measuring.machine()
    if given.quick:
        found = [replace(result, target=None) for result in found]
    told = f"{date.today().isoformat()}, {machine['name']}, torch {machine['torch']}, TRL {machine['trl'] or 'absent'}"
    print(f"\n{told}\n\n{results.table(found)}\n")
    if given.quick or given.repeats < ENOUGH:
        return 0  # one repeat on a shared machine is nothing to be held to
    return keep(found, machine)


def run(names: Sequence[str], effort: Effort) -> list[Result]:
    """The results of some benchmarks. One that cannot run here is left out, with a line that says why."""
    found: list[Result] = []
    for name in names:
        begun = time.perf_counter()
        try:
            found += importlib.import_module(f"bench.{MODULES[name]}").measure(effort)
            print(f"{name} {MODULES[name]}: {time.perf_counter() - begun:.0f} s", flush=True)
        except LeftOut as reason:
            print(f"{name} {MODULES[name]} is left out: {reason}", flush=True)
        gc.collect()
    return found


def keep(found: Sequence[Result], machine: dict[str, object]) -> int:
    """Write the results down, after comparing them; the exit status, 1 where a ratio has fallen."""
    folder, name = HERE / "results", str(machine["name"])
    fell = results.fallen(found, results.recorded(folder, name))
    path = results.save(folder, date.today().isoformat(), machine, found, fell)
    print(path)
    if fell:
        print("fallen under 0.9 of what is recorded, and so not recorded:", *fell, sep="\n  ")
        return 1
    page = HERE / "README.md"
    told = f"{date.today().isoformat()}, {name}, {machine['memory_gib']} GiB; torch {machine['torch']}, transformers "
    told += f"{machine['transformers']}, TRL {machine['trl'] or 'absent'}.\n\n{results.table(results.read(path))}"
    page.write_text(results.put_into(page.read_text(encoding="utf-8"), told), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="some of the benchmarks, as b3,b5")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
