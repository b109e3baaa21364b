"""A folder with tiny models and rows to be annotated."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from tests.unit.annotation.asking_tiny import ROWS, write


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.save(tiny.llama(1), folder / "plain")
    tiny.save(tiny.llama(2), folder / "chat", chat=True)
    return folder


@pytest.fixture
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with ``plain``, ``chat`` and ``rows.jsonl``."""
    for name in ("plain", "chat"):
        (tmp_path / name).symlink_to(models / name)
    write("rows.jsonl", ROWS, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
