"""What a run says of the process that it ran in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from potstill.environment import peak_memory_bytes

TOLD = "from potstill.environment import peak_memory_bytes; print(peak_memory_bytes())"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell a peak in one way alone")
def test_a_peak_is_not_that_of_the_process_which_has_started_this_one() -> None:
    large = bytearray(b"x") * 2**29
    assert peak_memory_bytes() > len(large)
    child = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, check=True)
    assert 2**22 < int(child.stdout) < 2**28
    del large


def test_a_peak_is_in_bytes_and_does_not_fall() -> None:
    before = peak_memory_bytes()
    large = bytearray(b"x") * 2**27
    after = peak_memory_bytes()
    del large
    assert after >= before
    assert peak_memory_bytes() >= after
