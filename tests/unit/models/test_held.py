"""Teachers in pieces, elsewhere and in fewer bits: the same states where weights are the same, near ones where not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from potstill.data.collate import collate
from potstill.data.examples import Tokenised
from potstill.errors import ConfigError, ModelError
from potstill.evaluation.evaluator import measure
from potstill.models.devices import device_beside
from potstill.models.families import Family, check_projection, family_of
from potstill.models.held import bytes_held, load_held
from potstill.models.loading import load
from potstill.objectives import forward_kl
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.recipe import Holding, StageTeacher, Teacher
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Single
from potstill.sampling.writer import LocalWriter
from potstill.teachers.local import LocalTeacher
from potstill.training.compute import Meter
from potstill.types import Batch
from tests import tiny

CPU = torch.device("cpu")
LENGTHS = [(3, 9), (7, 2), (5, 6)]
MAKE: dict[str, Any] = {
    "llama": lambda: tiny.llama(1),
    "untied": lambda: tiny.llama(1, tied=False),
    "gpt2": lambda: tiny.gpt2(1),
    "t5": lambda: tiny.t5(1),
    "t5_untied": lambda: tiny.t5(1, gated=True, tied=False),
    "bart": lambda: tiny.bart(1),
}


def loaded(folder: Path, run: torch.dtype = torch.float32, **held: Any) -> Family:
    return family_of(load_held(str(folder), Holding(**held), dtype=run, device=CPU).model)


def written(family: Family) -> list[Any]:
    decoding = Decoding(max_new_tokens=6, stop_ids=frozenset({0}))
    return LocalWriter(Single(), [family], decoding, slots=2).write([[5, 6, 7], [8], [9, 10]], seeds=[1, 2, 3])


def same(family: Family, plain: Family) -> None:
    """States, logits, the model's own forward and what it writes, all to the last bit."""
    batch = tiny.batch(LENGTHS)
    check_projection(family, "held")
    theirs, ours = LocalTeacher(plain).signal(batch), LocalTeacher(family).signal(batch)
    assert torch.equal(ours.hidden, theirs.hidden)
    assert torch.equal(ours.head(ours.hidden), theirs.head(theirs.hidden))
    assert torch.equal(
        *(one.own_logits(batch.prompt_ids[1:2], batch.response_ids[1:2]).detach() for one in (family, plain))
    )
    assert written(family) == written(plain)


@pytest.mark.parametrize("kind", MAKE)
def test_a_teacher_left_alone_is_loaded_as_ever(kind: str, tmp_path: Path) -> None:
    folder = tiny.save(MAKE[kind](), tmp_path / "m")
    same(loaded(folder), family_of(load(str(folder)).model))
    assert all(not hasattr(part, "_hf_hook") for part in loaded(folder).modules())


@pytest.mark.parametrize("kind", MAKE)
def test_layers_off_the_device_say_the_same(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    folder = tiny.save(MAKE[kind](), tmp_path / "m")
    family = loaded(folder, offload="cpu")
    away = {name for name, p in family.model.named_parameters() if p.is_meta}
    layers = {
        name for name, p in family.model.named_parameters() if ".h." in name or ".layers." in name or "block" in name
    }
    assert away == layers  # all of them and nothing else: embeddings and head are in place
    same(family, loaded(folder))
    assert {name for name, p in family.model.named_parameters() if p.is_meta} == away  # and so they are afterwards


def split(model: Any, **elsewhere: str) -> dict[str, str]:
    """Every module of a llama on the CPU but for those that are said to be elsewhere."""
    names = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    names += [f"model.layers.{at}" for at in range(len(model.model.layers))]
    return dict.fromkeys(names, "cpu") | {name.replace("__", "."): place for name, place in elsewhere.items()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "elsewhere",
    [{}, {"model__layers__1": "disk"}, {"model__layers__0": "disk", "model__layers__2": "disk", "model__norm": "disk"}],
    ids=["whole", "a_layer", "two_and_the_norm"],
)
def test_a_model_in_pieces_says_the_same(tied: bool, elsewhere: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = tiny.llama(1, tied=tied)
    folder = tiny.save(model, tmp_path / "m")
    family = loaded(folder, device_map=split(model, **elsewhere), offload_folder=str(tmp_path / "off"))
    assert any(p.is_meta for p in family.model.parameters()) is bool(elsewhere)
    same(family, loaded(folder))


def test_a_head_on_disk_is_brought_home(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = tiny.llama(1, tied=False)
    folder = tiny.save(model, tmp_path / "m")
    family = loaded(folder, device_map=split(model, lm_head="disk"), offload_folder=str(tmp_path / "off"))
    assert family.model.get_output_embeddings().weight.device == CPU
    same(family, loaded(folder))


def test_an_embedding_on_disk_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = tiny.llama(1, tied=False)
    folder = tiny.save(model, tmp_path / "m")
    with pytest.raises(ModelError, match=r"input embedding on disk.*\n?.*first module"):
        loaded(folder, device_map=split(model, model__embed_tokens="disk"), offload_folder=str(tmp_path / "off"))


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential", {"": "cpu"}], ids=str)
def test_accelerates_own_maps(device_map: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    folder = tiny.save(tiny.t5(1), tmp_path / "m")
    same(loaded(folder, device_map=device_map), loaded(folder))


# --- Fewer bits -------------------------------------------------------------------------------------------------------

# Of stories260k, on 180 tokens of its own: most nats of forward KL and least agreement with itself in float32, at about
# twice the distance measured; and bytes of a layer's weight, scales and tables included.
KINDS = {
    "int8": ("torchao", 0.001, 0.97, 1.07),
    "int8_dynamic": ("torchao", 0.003, 0.96, 1.07),
    "llm_int8": ("bitsandbytes", 0.003, 0.97, 1.07),
    "nf4": ("bitsandbytes", 0.25, 0.7, 0.69),  # of which tables a tenth: the matrices are tiny
}


def batch_of(prompts: list[list[int]], responses: list[Any]) -> Batch:
    pairs = enumerate(zip(prompts, responses, strict=True))
    return collate([Tokenised(f"row:{at}", tuple(p), r.ids, "", "", truncated=False) for at, (p, r) in pairs], 2)


def is_matrix(name: str, module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) and name != "lm_head"


def need(kind: str) -> None:
    pytest.importorskip(KINDS[kind][0], reason=f"{kind} needs {KINDS[kind][0]}")
    pytest.importorskip("accelerate")


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_teacher_agrees_with_itself_in_full(kind: str, data_dir: Path) -> None:
    need(kind)
    folder = data_dir / "stories260k"
    plain, family = loaded(folder), loaded(folder, quantise=kind)
    check_projection(family, kind)
    prompts = [[1], [1, 403, 407], [1, 410]]
    decoding = Decoding(max_new_tokens=60, stop_ids=frozenset({2}))
    batch = batch_of(prompts, LocalWriter(Single(), [plain], decoding, slots=3).write(prompts, seeds=[1, 2, 3]))
    found = measure(family, LocalTeacher(plain), [batch])
    _, most_nats, least_agreement, per_weight = KINDS[kind]
    assert 0 < found["forward_kl_nats"] < most_nats
    assert found["top1_agreement"] > least_agreement
    layers = sum(layer.weight.numel() for name, layer in plain.model.named_modules() if is_matrix(name, layer))
    rest = bytes_held(plain.model) - 4 * layers
    assert 0.96 * per_weight < (bytes_held(family.model) - rest) / layers <= per_weight  # scales and tables among them
    assert torch.equal(family.head.weight, plain.head.weight)  # never quantised


def test_four_bits_are_multiplied_in_the_teachers_own_precision(tmp_path: Path) -> None:
    need("nf4")
    folder = tiny.save(tiny.llama(1, hidden=64), tmp_path / "m")
    for dtype in ("float32", "bfloat16"):
        layer = loaded(folder, quantise="nf4", dtype=dtype).model.model.layers[0].self_attn.q_proj
        assert layer.compute_dtype == getattr(torch, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_teacher_writes_and_answers_alike_each_time(kind: str, tmp_path: Path) -> None:
    need(kind)
    folder = tiny.save(tiny.llama(1, hidden=64), tmp_path / "m")
    first, again = loaded(folder, quantise=kind), loaded(folder, quantise=kind)
    check_projection(first, kind)
    same(first, again)
    assert not any(p.requires_grad for p in LocalTeacher(first).family.parameters())


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_model_in_one_piece_of_a_map(kind: str, tmp_path: Path) -> None:
    need(kind)
    folder = tiny.save(tiny.llama(1, hidden=64), tmp_path / "m")
    same(loaded(folder, quantise=kind, device_map={"": "cpu"}), loaded(folder, quantise=kind))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_work_of_a_quantised_model_is_counted_by_its_weights(kind: str, tmp_path: Path) -> None:
    need(kind)
    folder, counts = tiny.save(tiny.llama(1, hidden=64), tmp_path / "m"), []
    for held in ({}, {"quantise": kind}):
        family = LocalTeacher(loaded(folder, **held)).family
        with Meter().reading([family]) as meter, torch.no_grad():
            family(tiny.batch(LENGTHS))
        counts.append(meter.flops)
    assert counts[0] == counts[1] > 0


def test_a_model_without_such_matrices_is_refused(tmp_path: Path) -> None:
    """GPT-2's layers are of a class of their own, transposed."""
    need("int8")
    folder = tiny.save(tiny.gpt2(1), tmp_path / "m")
    with pytest.raises(ModelError, match=r"none of its layers' matrices.*\n?.*nf4"):
        loaded(folder, quantise="int8")


def test_a_quantised_head_is_refused() -> None:
    need("int8")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = tiny.llama(1, hidden=64, tied=False)
    quantize_(model, Int8WeightOnlyConfig())
    with pytest.raises(ModelError, match="not a matrix"):
        _ = family_of(model).head


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_that_is_missing_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, KINDS[kind][0], None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    folder = tiny.save(tiny.llama(1), tmp_path / "m")
    with pytest.raises(
        ConfigError, match=rf"teacher.quantise={kind} .* by {KINDS[kind][0]}.*\n?.*potstill\[quantised\]"
    ):
        loaded(folder, quantise=kind)


@pytest.mark.parametrize("held", [{"offload": "cpu"}, {"device_map": "auto"}])
def test_without_accelerate_nothing_is_split(
    held: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    folder = tiny.save(tiny.llama(1), tmp_path / "m")
    with pytest.raises(ConfigError, match=r"by accelerate, which cannot be imported.*\n?.*potstill\[large\]"):
        loaded(folder, **held)


# --- Precision and devices --------------------------------------------------------------------------------------------


def test_the_precision_is_the_runs_unless_it_is_the_teachers(tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(1), tmp_path / "m")
    assert loaded(folder, torch.float64).model.dtype == torch.float64
    assert loaded(folder, torch.bfloat16, dtype="float32").model.dtype == torch.float32
    half = loaded(folder, dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert 2 * bytes_held(half.model) == pytest.approx(bytes_held(loaded(folder).model), rel=1e-3)  # but for a buffer


def test_a_teacher_in_bfloat16_beside_a_student_in_float32(tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(1), tmp_path / "m")
    student, batch = family_of(tiny.llama(2)), tiny.batch(LENGTHS)
    term = BoundTerm("kd", forward_kl, "teacher", 1.0, batch.response_mask.float() / batch.num_response_tokens)
    values = []
    for held in ({}, {"dtype": "bfloat16"}):
        signal = LocalTeacher(loaded(folder, **held)).signal(batch)
        total, _ = evaluate_terms(student.output(batch), signal, batch, [term])
        total.backward()
        assert total.dtype == torch.float32
        values.append(total.item())
    assert values[0] != values[1] == pytest.approx(values[0], rel=0.02)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in student.parameters())


def test_bytes_are_those_of_each_storage_once() -> None:
    tied, untied = tiny.llama(1), tiny.llama(1, tied=False)
    assert bytes_held(untied) - bytes_held(tied) == 4 * tiny.VOCAB * 16
    assert bytes_held(tied) == sum(t.nbytes for t in (*tied.parameters(), *tied.buffers()))


@pytest.mark.parametrize(
    ("name", "run", "expected"),
    [(None, "cuda:3", "cuda:3"), ("cuda", "cuda:3", "cuda:3"), ("cpu", "cuda:3", "cpu"), ("cpu", "cpu", "cpu")],
)
def test_a_device_beside_the_runs(name: str | None, run: str, expected: str) -> None:
    assert device_beside(name, torch.device(run)) == torch.device(expected)


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError):
        device_beside("cuda:1", CPU) if not torch.cuda.is_available() else device_beside("cuda:999", CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_beside("cuda:1", CPU) == torch.device("cuda:1")
    assert device_beside("cuda", CPU) == torch.device("cuda:0")
    with pytest.raises(ConfigError, match=r"torch sees 2 devices of cuda, and cuda:2 is none.*\n?.*cuda:1 is one"):
        device_beside("cuda:2", CPU)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"device": "gpu"}, "is 'gpu', which is no device. Write cpu"),
        ({"device": "cuda:x"}, "no device"),
        ({"device_map": {"": "tpu"}}, "has the model on 'tpu'"),
        ({"device_map": {"lm_head": -1}}, "has lm_head on -1"),
        ({"device_map": "auto", "device": "cpu"}, "Keep one of the two"),
        ({"device_map": "auto", "offload": "cpu"}, "Keep one of the two"),
        ({"quantise": "nf4", "offload": "cpu"}, "quantise is nf4. Keep one"),
        ({"device_map": {"lm_head": "disk"}}, "Set offload_folder"),
        (
            {"device_map": {"lm_head": "disk"}, "offload_folder": "x", "quantise": "int8"},
            "modules on disk, and quantise",
        ),
        ({"offload_folder": "x"}, "Set device_map"),
    ],
)
def test_settings_that_do_not_agree_are_refused(held: dict[str, Any], said: str) -> None:
    for kind in (Teacher, StageTeacher):
        with pytest.raises(ValidationError, match=said):
            kind(**held)


def test_what_is_held_alike() -> None:
    of_stage = StageTeacher(dtype="bfloat16", device="cpu")
    assert not of_stage.is_plain
    assert Teacher(model="m", **of_stage.held).held == of_stage.held  # type: ignore[arg-type]
    assert Teacher().is_plain
