"""Frozen weights in 4 or 8 bits under an adapter, by bitsandbytes on this machine's processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from potstill import assembly
from potstill import recipe as schema
from potstill.errors import ConfigError, ModelError
from potstill.models import adapters, quantised
from potstill.models.families import check_projection, family_of
from potstill.teachers.local import LocalTeacher
from potstill.training.compute import Meter
from potstill.training.runtime import Runtime
from tests import tiny
from tests.unit.models.test_adapters import BATCH, adapted, logits, taught

pytest.importorskip("peft", reason="needs the extra adapters")
pytest.importorskip("bitsandbytes", reason="needs the extra bitsandbytes")

CPU = torch.device("cpu")
RUNTIME = Runtime(CPU, torch.float32)
KINDS = ("nf4", "int8")


def made(kind: str, seed: int = 4, **settings: Any) -> Any:
    """A quantised model whose matrices are blocks of 64 numbers in each row, which every processor reads aright."""
    return quantised.quantise(tiny.llama(seed, **{"hidden": 64} | settings), kind, CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_inside_the_layers_are_near_what_they_were_and_the_rest_is_as_it_was(kind: str) -> None:
    plain, model = tiny.llama(4, hidden=64), made(kind)
    check_projection(family_of(model), kind)
    exact = adapters.merged(adapted(model, learnt=False), torch.float32).state_dict()
    assert exact.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        if "_proj" not in name:
            assert torch.equal(exact[name], value), name
            continue
        error = (exact[name] - value).abs()
        block = value.flatten().reshape(-1, 64).abs().amax(1).repeat_interleave(64).view_as(value)
        # Half of the widest gap of nf4's sixteen levels, and half of one of int8's 127 steps, which are of a row.
        of_row = value.abs().amax(1, keepdim=True) * (0.5 / 127 + 1e-3)
        half = block * quantised.WIDEST / 2 if kind == "nf4" else of_row
        assert (error <= half).all(), name
        assert error.max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_learns_on_weights_that_stay_and_is_merged_into_what_they_stand_for(kind: str) -> None:
    model = made(kind)
    student = adapted(model)
    held = [p.detach().clone() for name, p in student.named_parameters() if not adapters.is_matrix(name)]
    said = logits(student)
    taught(student, LocalTeacher(family_of(tiny.llama(5))))
    now = [p for name, p in student.named_parameters() if not adapters.is_matrix(name)]
    assert all(torch.equal(then, p) for then, p in zip(held, now, strict=True))
    assert not any(p.requires_grad for p in now)
    assert (logits(student) - said).abs().max() > 1e-3
    plain = adapters.merged(student, torch.float32)
    assert {type(module).__name__ for module in plain.modules()} == {type(m).__name__ for m in tiny.llama().modules()}
    # int8 rounds what a layer reads as well, which a plain layer does not.
    difference = (logits(plain) - logits(student)).abs().max()
    assert difference < (1e-5 if kind == "nf4" else 0.05 * logits(student).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_quantised_base_teaches_as_it_was(kind: str) -> None:
    model = made(kind)
    teacher = LocalTeacher(family_of(model))
    student = adapters.attach(adapters.mirrored(model), schema.Adapter(rank=2), adapters.Base("b", "0", {}), seed=1)
    own = {p.data_ptr() for name, p in student.named_parameters() if not adapters.is_matrix(name)}
    assert own == {p.data_ptr() for p in model.parameters()}
    beside = [[t.data_ptr() for m in one.modules() for t in quantised.tensors_of(m)] for one in (student, model)]
    assert beside[0] == beside[1]
    assert bool(beside[0]) == (kind == "int8")
    heard, said = teacher.signal(BATCH).hidden, logits(student)
    assert torch.equal(said, logits(model))
    taught(student, teacher)
    assert torch.equal(teacher.signal(BATCH).hidden, heard)
    assert not torch.equal(logits(student), said)


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_that_teaches_is_as_quantised_as_under_its_student(kind: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(4, hidden=64), tmp_path / "base")
    student = {"kind": "pretrained", "model": str(folder), "adapter": {"rank": 2, "quantise_base": kind}}
    streams = [{"signal": "logits", "terms": [{"objective": "forward_kl"}]}]
    stage = schema.Stage.model_validate(
        {"teacher": "base", "student": student, "streams": streams, "budget": {"steps": 1}}
    )
    teaching = assembly.load_teaching(stage, assembly.student_tokenizer(stage, False), RUNTIME, False)
    assert teaching is not None
    made = assembly.build_student(stage, RUNTIME, teaching.vocab_size, (), False, teaching=teaching)
    models = teaching.teacher.family.model, made.family.model
    assert all(any(map(quantised.is_quantised, model.modules())) for model in models)
    assert torch.equal(*map(logits, models))


def test_numbers_are_counted_and_not_bytes() -> None:
    plain = tiny.llama(4, hidden=64)
    flops = []
    for model in (plain, made("nf4"), made("int8")):
        meter = Meter()
        with torch.no_grad(), meter.reading([family_of(model)]):
            family_of(model)(BATCH)
        flops.append(meter.flops)
        assert adapters.num_parameters(model) == sum(p.numel() for p in plain.parameters())
    assert flops[0] == flops[1] == flops[2] > 0


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ModelError, match="no linear layers that bitsandbytes knows"):
        quantised.quantise(tiny.gpt2(), "nf4", CPU)
    with pytest.raises(ConfigError, match="dtype is float64"):
        quantised.quantise(tiny.llama().double(), "nf4", CPU)


def test_weights_that_this_processor_misreads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As bitsandbytes 0.50 does with AVX-512 and rows of 96 numbers, without a word."""
    import bitsandbytes

    read = bitsandbytes.functional.dequantize_4bit

    def shifted(packed: Any, state: Any) -> Any:
        whole = read(packed, state)
        return whole.roll(1, 0) if whole.shape[1] == 128 else whole

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", shifted)
    quantised._reads_back.cache_clear()
    with pytest.raises(ModelError, match=r"misreads 4-bit matrices of 128 columns on this cpu\n.*8 bits"):
        made("nf4")
    quantised._reads_back.cache_clear()
    made("int8")
