"""The peak memory of one subject, whose process this is, in MiB: ``python -m bench.alone MODULE SUBJECT SETTINGS``."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch

from bench.measuring import LEFT_OUT, LeftOut


def resident_mib(field: str) -> float:
    """VmRSS now, or VmHWM, its peak since it was last reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def main() -> None:
    torch.set_num_threads(1)
    module, subject, settings = sys.argv[1:]
    try:
        work = importlib.import_module(module).prepared(subject, **json.loads(settings))
    except LeftOut as reason:
        print(reason)
        sys.exit(LEFT_OUT)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what was before is not the subject's
    before = resident_mib("VmRSS")
    work()
    print(resident_mib("VmHWM") - before)


if __name__ == "__main__":
    main()
