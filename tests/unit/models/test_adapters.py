"""Adapters: what is put into a model, what is trained of it, what is written, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from potstill import assembly
from potstill import recipe as schema
from potstill.errors import CheckpointError, ModelError
from potstill.models import adapters
from potstill.models.families import check_projection, family_of
from potstill.models.fingerprint import fingerprint_of
from potstill.models.loading import load, load_tokenizer
from potstill.teachers.local import LocalTeacher
from tests import tiny

peft = pytest.importorskip("peft", reason="needs the extra adapters")

LORA = schema.Adapter(rank=4)
MODELS: dict[str, Any] = {
    "llama": tiny.llama,
    "llama_untied": lambda: tiny.llama(tied=False),
    "gpt2": tiny.gpt2,
    "t5": tiny.t5,
    "bart": tiny.bart,
}
BATCH = tiny.batch([(5, 4), (3, 6)])


def base(name: str | None = "base") -> adapters.Base:
    return adapters.Base("base", "0" * 64, {}, name)


def adapted(model: Any, *, seed: int = 1, learnt: bool = True, settings: schema.Adapter = LORA) -> Any:
    """A model with an adapter that changes what it says."""
    model = adapters.attach(model, settings, base(), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if learnt and adapters.is_matrix(name):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    family = family_of(model)
    return family.head(family(BATCH))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- In a model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_a_new_adapter_says_nothing_and_is_all_that_is_trained(kind: str) -> None:
    plain, model = MODELS[kind](), adapted(MODELS[kind](), learnt=False)
    assert torch.equal(logits(model), logits(plain))
    check_projection(family_of(model), kind)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(adapters.is_matrix(name) for name in trained)
    layers = [m for m in plain.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    assert len(trained) == 2 * (len(layers) - 1)  # all but the output embedding
    assert adapters.num_parameters(model) == sum(p.numel() for p in plain.parameters())


def test_matrices_are_those_of_the_seed_and_the_process_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    models = [adapted(tiny.llama(), seed=seed, learnt=False).state_dict() for seed in (1, 1, 2)]
    torch.manual_seed(3)
    adapted(tiny.llama(), seed=5, learnt=False)
    torch.manual_seed(3)
    model = tiny.llama()
    torch.manual_seed(3)
    adapters.attach(model, LORA, base(), seed=5)
    assert torch.equal(torch.rand(4), expected)
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(models[0][name], models[1][name])
    assert not torch.equal(models[0][name], models[2][name])


def test_rank_alpha_and_their_scale() -> None:
    for use_rslora, root in ((False, 4.0), (True, 2.0)):
        settings = schema.Adapter(rank=4, alpha=8.0, use_rslora=use_rslora)
        layer = adapted(tiny.llama(), settings=settings).model.layers[0].self_attn.q_proj
        expected = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 8 / root
        torch.testing.assert_close(layer.get_delta_weight("default"), expected)
        assert layer.lora_A["default"].weight.shape == (4, 16)


def test_its_dropout_is_on_in_training_alone() -> None:
    model = adapted(tiny.llama(), settings=schema.Adapter(rank=4, dropout=0.5))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_only_the_layers_that_are_named() -> None:
    settings = schema.Adapter(rank=2, target_modules=("q_proj", "model.layers.1.mlp.up_proj"))
    found = {name for name, p in adapted(tiny.llama(), settings=settings).named_parameters() if p.requires_grad}
    assert {name.partition(".lora_")[0] for name in found} == {
        *(f"model.layers.{at}.self_attn.q_proj" for at in range(3)),
        "model.layers.1.mlp.up_proj",
    }


def test_a_layer_outside_that_has_the_same_name_is_let_be() -> None:
    model = tiny.llama()
    model.model.q_proj = torch.nn.Linear(4, 4)
    made = adapted(model)
    assert type(made.model.q_proj) is torch.nn.Linear
    assert hasattr(made.model.layers[0].self_attn.q_proj, "lora_A")


def test_layers_that_are_not_there_are_refused_with_those_that_are() -> None:
    for target in ("q_prj", "lm_head", "proj"):
        with pytest.raises(ModelError, match=rf"{target}, and(.|\n)*They have down_proj, gate_proj, k_proj"):
            adapters.attach(tiny.llama(), schema.Adapter(target_modules=(target,)), base(), seed=0)


def test_a_rank_above_the_narrowest_layer_is_refused() -> None:
    adapters.attach(tiny.llama(), schema.Adapter(rank=8), base(), seed=0)
    with pytest.raises(ModelError, match=r"rank is 9(.|\n)*k_proj is only 8 wide(.|\n)*at most 8"):
        adapters.attach(tiny.llama(), schema.Adapter(rank=9), base(), seed=0)


# --- Two trees on the same weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_the_merged_model_says_what_the_adapted_one_says(kind: str) -> None:
    model = adapted(MODELS[kind]())
    before, said = copy.deepcopy(model.state_dict()), logits(model)
    plain = adapters.merged(model, torch.float32)
    assert type(plain) is type(MODELS[kind]())
    assert plain.state_dict().keys() == MODELS[kind]().state_dict().keys()
    assert not adapters.is_adapted(plain)
    torch.testing.assert_close(logits(plain), said, rtol=0, atol=1e-5)
    assert (said - logits(MODELS[kind]())).abs().max() > 0.1
    assert same(model.state_dict(), before)
    assert torch.equal(logits(model), said)
    untouched = adapters.merged(model, torch.float32, with_adapter=False)
    assert same(untouched.state_dict(), MODELS[kind]().state_dict())


def test_the_merged_model_in_another_precision_leaves_the_first_as_it_was() -> None:
    model = adapted(tiny.bart())
    plain = adapters.merged(model, torch.bfloat16)
    assert {value.dtype for value in plain.state_dict().values()} == {torch.bfloat16}
    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def taught(student: Any, teacher: LocalTeacher, steps: int = 3) -> None:
    """A few steps of the student on nothing in particular, the teacher asked in each."""
    family = family_of(student)
    family.train()
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        signal = teacher.signal(BATCH)
        ours, theirs = family.head(family(BATCH)), signal.head(signal.hidden)
        (ours - theirs - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert student.training
    family.eval()


def test_the_base_teaches_unchanged_while_its_student_changes_and_is_held_once() -> None:
    model = tiny.gpt2(dropout=0.3)
    teacher = LocalTeacher(family_of(model))
    student = adapters.attach(adapters.mirrored(model), LORA, base(), seed=1)
    before, said = copy.deepcopy(model.state_dict()), logits(student)
    heard = teacher.signal(BATCH)
    taught(student, teacher)
    assert torch.equal(teacher.signal(BATCH).hidden, heard.hidden)
    assert same(model.state_dict(), before)
    assert (logits(student) - said).abs().max() > 1e-3
    assert not any(adapters.is_matrix(name) for name, _ in model.named_parameters())
    assert not model.training
    own = {p.data_ptr() for name, p in student.named_parameters() if not adapters.is_matrix(name)}
    assert own == {p.data_ptr() for p in model.parameters()}
    adapters.merged(student, torch.float32)
    assert same(model.state_dict(), before)


def test_teacher_and_student_adapters_on_one_base_are_not_mixed_up(tmp_path: Path) -> None:
    """The teacher is one adapter's folder, the student another one beside the same base."""
    folder = tiny.save(tiny.llama(4), tmp_path / "base")
    adapters.save(adapted(tiny.llama(4), seed=1), tmp_path / "taught", base_name=str(folder))
    expected = logits(adapted(tiny.llama(4), seed=1))
    teacher = LocalTeacher(family_of(load(str(tmp_path / "taught")).model))
    student = adapted(load(str(folder)).model, seed=2)
    own = logits(student)
    torch.testing.assert_close(logits(teacher.family.model), expected, rtol=0, atol=1e-5)
    assert (own - expected).abs().max() > 0.1
    heard = teacher.signal(BATCH).hidden
    taught(student, teacher)
    assert torch.equal(teacher.signal(BATCH).hidden, heard)
    assert not torch.equal(logits(student), own)
    assert same(load(str(folder)).model.state_dict(), tiny.llama(4).state_dict())


# --- On disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any]:
    """The folder of an adapter beside that of its base, and the model it is of."""
    folder = tiny.save(tiny.llama(4), tmp_path / "base", chat=True)
    model = adapted(tiny.llama(4))
    adapters.save(model, tmp_path / "adapter", base_name=str(folder))
    return tmp_path / "adapter", model


def test_peft_reads_what_is_written(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]
    told = json.loads((folder / "adapter_config.json").read_text())
    read = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(told["base_model_name_or_path"]), str(folder)
    )
    assert torch.equal(logits(read.get_base_model().eval()), logits(model))


def test_an_adapters_folder_is_a_model_with_its_bases_tokenizer(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    loaded = load(str(folder))
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=0, atol=1e-5)
    assert type(loaded.model) is type(tiny.llama())
    assert load_tokenizer(str(folder)).chat_template == tiny.tokenizer(chat=True).chat_template
    own = tiny.tokenizer(chat=True)
    own.chat_template = "another"
    own.save_pretrained(folder)
    assert load_tokenizer(str(folder)).chat_template == "another"


def test_an_adapters_fingerprint_is_of_both(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    first = fingerprint_of(str(folder))
    adapters.save(adapted(tiny.llama(4), seed=9), folder, base_name=str(folder.parent / "base"))
    second = fingerprint_of(str(folder))
    tiny.llama(5).save_pretrained(folder.parent / "base")
    assert len({first, second, fingerprint_of(str(folder))}) == 3


def test_what_is_merged_first_has_no_name_to_be_loaded_by(saved: tuple[Path, Any]) -> None:
    """The base of an adapter beside another adapter's folder, whose merged weights lie nowhere."""
    streams = [{"terms": [{"objective": "cross_entropy"}]}]
    for folder, name in ((saved[0], None), (saved[0].parent / "base", str(saved[0].parent / "base"))):
        student = {"kind": "pretrained", "model": str(folder), "adapter": {"rank": 2}}
        stage = schema.Stage.model_validate({"student": student, "streams": streams, "budget": {"steps": 1}})
        assert assembly.base_of(stage, {}).name == name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model_name_or_path": None}, "does not say which model"),
        ({"base_model_name_or_path": "./nowhere"}, "there is no such folder"),
        ({"base_model_name_or_path": "itself"}, "names itself"),
        ({"r": 5}, "cannot be added"),
        ({"peft_type": "NONSENSE"}, "cannot be"),
    ],
)
def test_adapters_that_cannot_be_read_are_refused(saved: tuple[Path, Any], change: dict[str, Any], said: str) -> None:
    folder, _ = saved
    file = folder / "adapter_config.json"
    told = json.loads(file.read_text()) | change
    told = {key: str(folder) if value == "itself" else value for key, value in told.items()}
    file.write_text(json.dumps(told))
    with pytest.raises(ModelError, match=said):
        load(str(folder))
    file.write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        load(str(folder))


def test_weights_that_could_run_code_are_not_read(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load(str(folder))


def test_restored_is_what_was_saved(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    other = adapted(tiny.llama(4), seed=7)
    assert not torch.equal(logits(other), logits(model))
    adapters.restore(other, folder)
    assert same(other.state_dict(), model.state_dict())


def test_an_adapter_of_another_base_or_shape_is_not_restored(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    for other, said in (
        (adapters.Base("base", "1" * 64, {}, "base"), "has changed since"),
        (adapters.Base("base", "0" * 64, {"kept_layers": [0]}, "base"), "is cut otherwise"),
    ):
        with pytest.raises(CheckpointError, match=said):
            adapters.restore(adapters.attach(tiny.llama(4), LORA, other, seed=1), folder)
    narrower = schema.Adapter(rank=4, target_modules=("q_proj",))
    with pytest.raises(CheckpointError, match="not the adapter that the recipe asks for"):
        adapters.restore(adapters.attach(tiny.llama(4), narrower, base(), seed=1), folder)
    with pytest.raises(CheckpointError, match="not the adapter that the recipe asks for"):
        adapters.restore(adapters.attach(tiny.llama(4), schema.Adapter(rank=2), base(), seed=1), folder)
