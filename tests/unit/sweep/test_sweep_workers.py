"""Processes of a sweep: what each is started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from potstill.sweep import workers


def test_processes_share_the_processors_threads_unless_the_user_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, str]] = []

    def start(*_: Any, env: dict[str, str], **__: Any) -> None:
        started.append(env)

    monkeypatch.setattr(workers.subprocess, "Popen", start)
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for jobs in (1, 3, 16):
        workers.Worker(tmp_path / "worker.log", jobs, False)._start()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    workers.Worker(tmp_path / "worker.log", 3, False)._start()
    assert [env["OMP_NUM_THREADS"] for env in started] == ["8", "2", "1", "5"]
