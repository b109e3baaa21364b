"""What a dry run is made of: sizes against real optimizers, small models, tokenizers and rows that stand in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from potstill import recipe as schema
from potstill import recipe_io
from potstill.checks.dry import data as dry_data
from potstill.checks.dry import world
from potstill.checks.dry.models import Blueprint, blueprint, layers_of_stacks, small_config
from potstill.checks.dry.naming import of_stage
from potstill.checks.dry.shrinking import shrunken
from potstill.checks.dry.sizes import Pair, memory, pairs, told_of
from potstill.checks.dry.tokenizers import Chosen, stand_in_tokenizer, tokenizers_of
from potstill.data.examples import Example
from potstill.data.prepare import prepare
from potstill.data.tokenise import tokenise
from potstill.errors import DataError, ModelError
from potstill.models import adapters
from potstill.models.architectures import built, known_config
from potstill.models.pruning import freeze_embeddings
from potstill.models.quantised import quantise
from potstill.recipes import METHODS
from potstill.training import optim
from tests import tiny

# --- sizes ------------------------------------------------------------------------------------------------------------


def stage(**settings: Any) -> schema.Stage:
    return recipe_io.load("sft", {"student": "any"} | settings, methods=METHODS).stage


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("make", [tiny.llama, lambda: tiny.t5(gated=True, tied=False)])
def test_memory_is_what_a_real_step_takes(make: Any, optimizer: str, frozen: bool) -> None:
    asked = stage(optimizer=optimizer, **{"student.freeze_embeddings": frozen})
    model = make()
    predicted = memory(Pair(asked, built(model.config, device="meta"), None, None, {}), "float32")
    if frozen:
        freeze_embeddings(model)
    made = optim.build(model, asked.optimizer)
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    made.step()
    tensors = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
    assert predicted == {
        "student": 4 * sum(p.numel() for p in model.parameters()),
        "gradients": 4 * sum(p.numel() for p in model.parameters() if p.grad is not None),
        "optimizer": 4 * sum(value.numel() for value in tensors if value.ndim),
    }


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_memory_of_an_adapter_is_what_a_real_step_takes(optimizer: str) -> None:
    pytest.importorskip("peft", reason="needs the extra adapters")
    asked = stage(optimizer=optimizer, **{"student.adapter": "lora", "student.adapter.rank": 4})
    assert asked.adapter is not None
    predicted = memory(Pair(asked, built(tiny.llama().config, device="meta"), None, None, {}), "float32")
    model = adapters.attach(tiny.llama(), asked.adapter, adapters.Base("any", "", {}), seed=1)
    made = optim.build(model, asked.optimizer)
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    made.step()
    tensors = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
    assert predicted == {
        "student": 4 * sum(p.numel() for p in model.parameters()),
        "gradients": 4 * sum(p.numel() for p in model.parameters() if p.grad is not None),
        "optimizer": 4 * sum(value.numel() for value in tensors if value.ndim),
    }


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_memory_of_a_quantised_base_is_what_it_takes(kind: str) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra bitsandbytes")
    asked = stage(**{"student.adapter": "lora", "student.adapter.rank": 4, "student.adapter.quantise_base": kind})
    full = tiny.llama(hidden=64)
    teaching = asked.model_copy(update={"teacher": schema.BaseTeacher()})
    predicted = memory(Pair(teaching, full, full, full, {}), "float32")
    assert "teacher" not in predicted  # it is the student's own weights
    whole = memory(Pair(stage(), full, None, None, {}), "float32")["student"]
    held = sum(
        p.numel() * p.element_size() for p in quantise(tiny.llama(hidden=64), kind, torch.device("cpu")).parameters()
    )
    assert held <= predicted["student"] - predicted["gradients"] < held * 1.05 < whole


def test_a_teacher_in_bfloat16_takes_half() -> None:
    model = built(tiny.llama().config, device="meta")
    pair = Pair(stage(), model, model, model, {})
    assert memory(pair, "bfloat16")["teacher"] * 2 == memory(pair, "float32")["teacher"]
    assert memory(pair, "bfloat16")["student"] == memory(pair, "float32")["student"]


@pytest.mark.parametrize(
    ("held", "kind"), [({"dtype": "bfloat16"}, "llama"), ({"quantise": "int8"}, "llama"), ({"quantise": "nf4"}, "t5")]
)
def test_a_teacher_takes_what_it_is_held_in(held: dict[str, str], kind: str) -> None:
    """By the names of its weights: what is no matrix of a layer is as it was."""
    model = {"llama": tiny.llama(hidden=64, tied=False), "t5": tiny.t5(hidden=64, gated=True, tied=False)}[kind]
    asked = stage(teacher={"model": "any", **held})
    layers = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.ndim == 2 and "embed" not in name and "shared" not in name and "lm_head" not in name and "bias" not in name
    )
    rest = sum(p.numel() for p in model.parameters()) - layers
    found = memory(Pair(asked, model, model, model, {}), "float32")["teacher"]
    bits = {"int8": 8, "nf4": 4}.get(held.get("quantise", ""))
    assert found == (2 * (rest + layers) if bits is None else 4 * rest + layers * bits // 8)
    assert told_of(asked) == ", ".join(f"{name} {value}" for name, value in held.items())
    assert told_of(stage()) == ""


CHAIN = """
stages:
  - name: first
    teacher: big
    student: {keep_layers: 6}
    streams: [{signal: logits, terms: [forward_kl]}]
    budget: {steps: 2}
  - name: second
    teacher: {stage: first}
    student: {keep_layers: 6}
    streams: [{signal: logits, terms: [forward_kl]}]
    budget: {steps: 2}
  - name: third
    teacher: {stage: second}
    student: {keep_layers: [0, 2, 5]}
    streams: [{signal: logits, terms: [forward_kl]}]
    budget: {steps: 2}
  - name: fourth
    student: previous
    streams: [{terms: [cross_entropy]}]
    budget: {steps: 2}
"""


def in_stages(folder: Path) -> schema.Recipe:
    file = folder / "chain.yaml"
    file.write_text(CHAIN, encoding="utf-8")
    return recipe_io.load(file, methods=METHODS)


def test_students_of_earlier_stages_have_their_size(tmp_path: Path) -> None:
    big = built(tiny.llama(layers=8).config, device="meta")
    found = list(pairs(in_stages(tmp_path), {("big", None): big}))
    layers = [
        (pair.teacher and layers_of_stacks(pair.teacher)["decoder"], layers_of_stacks(pair.student)["decoder"])
        for pair in found
    ]
    assert layers == [(8, 6), (6, 6), (6, 3), (None, 3)]
    assert [pair.names for pair in found] == [
        {"teacher": "big", "student": "cut from big"},
        {"teacher": "student of first", "student": "cut from student of first"},
        {"teacher": "student of second", "student": "cut from student of second"},
        {"student": "student of third"},
    ]


def test_layers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="stage first: keep_layers is 6 but the model has 4 layers"):
        list(pairs(in_stages(tmp_path), {("big", None): built(tiny.llama(layers=4).config, device="meta")}))


def test_what_is_cut_is_cut_in_the_small_recipe_too(tmp_path: Path) -> None:
    recipe, big = in_stages(tmp_path), built(tiny.llama(layers=8).config, device="meta")
    full = list(pairs(recipe, {("big", None): big}))
    small = shrunken(recipe, {("big", None): tmp_path}, full, lambda stage: stage.data, lambda _, source: source)
    assert [getattr(stage.student, "keep_layers", None) for stage in small.stages] == [1, 1, (0,), None]
    models = {(str(tmp_path), None): built(small_config(big, 1), device="meta")}
    assert [layers_of_stacks(pair.student)["decoder"] for pair in pairs(small, models)] == [1, 1, 1, 1]


def test_everything_else_is_as_the_recipe_has_it() -> None:
    settings = {"student": "any", "teacher": "any", "evaluation.num_beams": 3, "rollout.max_new_tokens": 64}
    recipe = recipe_io.load("gkd", settings, methods=METHODS)
    model = built(tiny.llama().config, device="meta")
    places = {("any", None): Path("small")}
    (was,), (now,) = (
        recipe.stages,
        shrunken(
            recipe,
            places,
            list(pairs(recipe, {("any", None): model})),
            lambda stage: stage.data,
            lambda _, source: source,
        ).stages,
    )
    assert now.student == was.student.model_copy(update={"model": "small"})
    assert (now.batch.size, now.budget.steps, now.evaluation.max_new_tokens, now.evaluation.num_beams) == (2, 1, 8, 3)
    for name in ("optimizer", "checkpoint", "dropout", "data", "method"):
        assert getattr(now, name) == getattr(was, name)
    for stream, old in zip(now.streams, was.streams, strict=True):
        assert stream.terms == old.terms
        assert stream.signal == old.signal
        rollout, before = schema.rollout_of(stream.source), schema.rollout_of(old.source)
        assert rollout is not None
        assert before is not None
        assert rollout == before.model_copy(update={"max_new_tokens": 8})


def test_a_failure_is_told_in_the_words_of_the_recipe() -> None:
    called = {"/tried/model-1": "gpt2", "/tried/model-10": "opt"}
    with pytest.raises(ModelError) as error, of_stage("warm-up", called):
        raise ModelError("/tried/model-10: broken, not /tried/model-1", "look into /tried/model-1/config.json")
    assert str(error.value) == "stage warm-up: opt: broken, not gpt2\n  fix: look into gpt2/config.json"


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_small_model_has_two_layers_and_the_real_width_or_a_part_of_it() -> None:
    full = built(known_config("google/flan-t5-base"), device="meta")
    config = small_config(full, 1)
    assert (config.num_layers, config.num_decoder_layers, config.d_model, config.d_ff) == (2, 2, 768, 2048)
    assert config.scale_decoder_outputs is False
    narrow = small_config(full, 4)
    assert (narrow.d_model, narrow.d_ff, narrow.d_kv, narrow.num_heads, narrow.vocab_size) == (192, 512, 16, 12, 32128)
    assert sum(p.numel() for p in built(narrow).parameters()) < sum(p.numel() for p in built(config).parameters()) / 3
    causal = small_config(built(tiny.llama(layers=5).config, device="meta"), 2)
    assert (causal.num_hidden_layers, causal.hidden_size) == (2, 8)


def test_widths_are_divided_by_no_more_than_it_takes_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a model that never fits is tried at the least width there is."""
    key = ("any", None)
    full = built(tiny.llama(layers=5, hidden=64).config, device="meta")
    recipe = recipe_io.load("sft", {"student": "any"}, methods=METHODS)
    prints, places = {key: Blueprint("any", full, None, None)}, {key: Path("small")}
    small = shrunken(recipe, places, list(pairs(recipe, {key: full})), lambda own: own.data, lambda _, source: source)
    peaks = {}
    for narrower in world.NARROWER:
        models = {("small", None): built(small_config(full, narrower), device="meta")}
        peaks[narrower] = max(world._peak(memory(pair, small.dtype)) for pair in pairs(small, models))
    assert list(peaks.values()) == sorted(peaks.values(), reverse=True)
    for most, expected in ((peaks[1], 1), (peaks[1] - 1, 2), (peaks[4], 4), (0, 16)):
        monkeypatch.setattr(world, "MOST_BYTES", most)
        configs, narrower = world._fitting(small, prints, places)
        assert (narrower, configs[key].hidden_size) == (expected, 64 // expected)


def test_a_student_is_written_and_read_beside_itself_without_its_optimizer() -> None:
    assert world._peak({"student": 10, "gradients": 1, "optimizer": 4}) == 21
    assert world._peak({"student": 10, "gradients": 10, "optimizer": 20, "teacher": 5}) == 45


def test_a_folder_is_taken_before_the_table_and_an_unknown_name_is_refused(tmp_path: Path) -> None:
    tiny.save(tiny.llama(layers=5), tmp_path / "mine")
    mine = blueprint((str(tmp_path / "mine"), None), False)
    assert mine.layers == {"decoder": 5}
    assert mine.tokenizer is not None
    assert mine.model.device.type == "meta"
    table = blueprint(("google/flan-t5-small", None), False)
    assert (table.layers, table.folder) == ({"encoder": 8, "decoder": 8}, None)
    with pytest.raises(ModelError, match="nobody/nothing: it is not on this machine"):
        blueprint(("nobody/nothing", None), False)


def test_a_folder_without_a_tokenizer_is_told_from_one_with_a_broken_one(tmp_path: Path) -> None:
    tiny.llama().config.save_pretrained(tmp_path / "bare")
    assert blueprint((str(tmp_path / "bare"), None), False).tokenizer is None
    (tmp_path / "bare" / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError):
        blueprint((str(tmp_path / "bare"), None), False)


# --- tokenizers -------------------------------------------------------------------------------------------------------

TEXT = "The naïve fox, 12.5% faster!\n\tEnd 東京 🦊"


def test_a_stand_in_tokenizer_frames_and_gives_back_what_it_was_given() -> None:
    tokenizer = stand_in_tokenizer(known_config("google/flan-t5-small"), chat=False)
    assert len(tokenizer) == 32128
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)
    ids = tokenizer.encode(TEXT)
    assert ids[-1] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    assert len(tokenizer.encode("Write a very short story of three sentences")) < 20  # not a token for each byte
    row = Example("What is it?", "A fox.", "1")
    (pair,) = tokenise([row], tokenizer, template="none", max_prompt_tokens=64, max_response_tokens=64)
    assert not isinstance(pair, str)
    assert (pair.prompt_ids[-1], pair.response_ids[-1]) == (1, 1)


def test_a_causal_models_special_tokens_stand_at_their_ids() -> None:
    gpt2 = stand_in_tokenizer(GPT2Config(), chat=False)
    assert gpt2.eos_token_id == gpt2.pad_token_id == 50256
    assert gpt2.encode("<end>", add_special_tokens=False) == [50256]
    assert gpt2.encode("a fox")[-1] != 50256
    llama = stand_in_tokenizer(LlamaConfig(vocab_size=2000, bos_token_id=1, eos_token_id=[2, 3]), chat=True)
    assert llama.eos_token_id == 2
    assert llama.encode("a fox")[0] == 1
    assert "a fox" in llama.apply_chat_template([{"role": "user", "content": "a fox"}], tokenize=False)


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(ModelError, match="no room for 256 bytes"):
        stand_in_tokenizer(GPT2Config(vocab_size=200, eos_token_id=0, bos_token_id=0), chat=False)


def test_models_of_a_kind_share_the_tokenizer_that_is_here() -> None:
    here, table = tiny.tokenizer(kind="t5"), built(tiny.t5(hidden=32).config, device="meta")
    prints = [
        Blueprint("here", built(tiny.t5().config, device="meta"), here, Path()),
        Blueprint("kin", table, None, None),
        Blueprint("other", built(tiny.llama().config, device="meta"), None, None),
    ]
    chosen = tokenizers_of(prints, chat=False)
    assert chosen["kin"].tokenizer is here
    assert chosen["kin"].what == "that of here"
    assert chosen["here"] == Chosen(here)
    assert not chosen["other"].own
    assert chosen["other"].tokenizer is not here


# --- rows -------------------------------------------------------------------------------------------------------------


def rows_for(folder: Path, **settings: Any) -> tuple[schema.Data, dict[str, str]]:
    said: dict[str, str] = {}
    asked = recipe_io.load("step_by_step", {"student": "any"} | settings, methods=METHODS).stage
    return dry_data.rows_for(asked, folder, own_tokenizer=True, say=lambda what, by: said.update({what: by})), said


def test_rows_that_are_here_are_taken_and_few(tmp_path: Path) -> None:
    file = tiny.data_file(tmp_path, 400)
    found, said = rows_for(tmp_path, data=str(file))
    assert said == {}
    assert found.path == str(file)
    prepared = prepare(found, tiny.tokenizer())
    assert 0 < len(prepared.train) <= dry_data.ROWS
    assert len(prepared.heldout) == len(prepared.validation) == dry_data.MEASURED


@pytest.mark.parametrize("asked", ["no-such.jsonl", "anli:r1_train"])
def test_rows_that_are_not_here_are_stood_for(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path / "none"))
    found, said = rows_for(tmp_path, data=asked, **{"data.heldout": "anli:r1_dev", "data.labels": "llm"})
    assert list(said) == [f"rows of {asked}", "rows of anli:r1_dev"]
    prepared = prepare(found, tiny.tokenizer())
    assert prepared.train
    assert prepared.heldout
    assert {row.response for row in (*prepared.train, *prepared.heldout)} == set(dry_data.LABELS)
    assert prepared.counts["overlap"]["duplicate_rows"] == 0


def test_rows_and_what_was_said_of_them_are_stood_for_together(tmp_path: Path) -> None:
    file = tiny.data_file(tmp_path)
    found, said = rows_for(tmp_path, data=str(file), **{"data.annotations": str(tmp_path / "gone.jsonl")})
    assert set(said) == {f"rows of {file}", f"annotations {tmp_path / 'gone.jsonl'}"}
    assert found.annotations is None
    assert all("rationale" in json.loads(line) for line in Path(found.path).read_text().splitlines())


def test_a_split_that_does_not_exist_is_a_mistake_and_not_stood_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="anli has no split 'r9_train'"):
        rows_for(tmp_path, data="anli:r9_train")


def test_plain_text_that_is_not_here_is_long_enough(tmp_path: Path) -> None:
    from potstill.data.plain_text import plain_text

    said: list[str] = []
    tokenizer = tiny.tokenizer()
    asked = schema.DatasetSource(view="plain_text", path="datasets:nobody/nothing", subset="some", block_tokens=128)
    found = dry_data.text_for(asked, Chosen(tokenizer), tmp_path, say=lambda what, _: said.append(what))
    assert said == ["text of datasets:nobody/nothing"]
    assert len(plain_text(found, tokenizer)) >= 8  # type: ignore[arg-type]
    (tmp_path / "mine.txt").write_text("a fox\n", encoding="utf-8")
    mine = schema.DatasetSource(view="plain_text", path=str(tmp_path / "mine.txt"))
    assert dry_data.text_for(mine, Chosen(tokenizer), tmp_path, say=lambda what, _: said.append(what)) == mine
    assert len(said) == 1
