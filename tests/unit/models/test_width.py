"""Students cut in width: all kept is the teacher, what stays is the most active, and padding has no say in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from potstill.errors import ModelError
from potstill.models.width import Chosen, Widths, choose_widths, cut_width, first_of, importance, sizes_of
from tests import tiny
from tests.unit.features.test_channel_scores import one_row

IDS = torch.randint(1, tiny.VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "initializer_range": 0.3,
}


def of(config: Any, kind: Any, **other: Any) -> Any:
    torch.manual_seed(0)
    return kind(config(**(SIZES | other))).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: of(LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True),
    "llama_untied": lambda: of(
        LlamaConfig, LlamaForCausalLM, tie_word_embeddings=False, attention_bias=True, mlp_bias=True
    ),
    "qwen2": lambda: of(Qwen2Config, Qwen2ForCausalLM),
    "qwen3": lambda: of(Qwen3Config, Qwen3ForCausalLM),
    "gpt2": tiny.gpt2,
    "opt": lambda: of(OPTConfig, OPTForCausalLM, ffn_dim=40, word_embed_proj_dim=24, init_std=0.3),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def all_of(model: Any) -> Chosen:
    return first_of(model, Widths())


@every_model
def test_keeping_everything_is_the_teacher_bit_for_bit(make: Callable[[], Any]) -> None:
    teacher = make()
    with torch.no_grad():
        assert torch.equal(cut_width(teacher, all_of(teacher))(IDS).logits, teacher(IDS).logits)


@every_model
def test_what_is_silenced_is_what_was_cut(make: Callable[[], Any]) -> None:
    """Heads and inner channels that nobody reads may go: the student is the teacher with those columns at 0."""
    teacher = make()
    sizes, chosen = sizes_of(teacher), all_of(teacher)
    halves = [torch.arange(at % 2, sizes.mlp, 2) for at in range(len(chosen.mlp))]
    some = Chosen(chosen.hidden, chosen.heads, torch.stack(halves))
    student = cut_width(teacher, some)
    with torch.no_grad():
        for layer, kept in zip(layers_of(teacher), some.mlp, strict=True):
            silence(layer, "mlp", [at for at in range(sizes.mlp) if at not in kept.tolist()], teacher)
        torch.testing.assert_close(student(IDS).logits, teacher(IDS).logits, rtol=1e-4, atol=1e-5)


def layers_of(model: Any) -> Any:
    from potstill.models.layout import layers_of as theirs

    return theirs(model)


def silence(layer: Any, what: str, channels: list[int], model: Any) -> None:
    """Set what a matrix reads of these channels to 0."""
    from potstill.models.axes import layout_of

    layout = layout_of(model.config)
    weight = layer.get_submodule(layout.mlp_out if what == "mlp" else layout.attention_out).weight
    if layout.inputs_first:
        weight[channels] = 0
    else:
        weight[:, channels] = 0


@pytest.mark.parametrize("kind", ["llama", "llama_untied", "qwen2", "qwen3"])
def test_a_head_goes_with_its_queries(kind: str) -> None:
    """Without head 1 of the keys in layer 0 and head 2 in layer 1: the teacher with what they give set to 0."""
    teacher = MODELS[kind]()
    sizes, chosen = sizes_of(teacher), all_of(teacher)
    assert (sizes.group, sizes.head) == (2, 4)
    student = cut_width(teacher, Chosen(chosen.hidden, torch.tensor([[0, 2], [0, 1]]), chosen.mlp))
    assert (student.config.num_attention_heads, student.config.num_key_value_heads, student.config.head_dim) == (
        4,
        2,
        4,
    )
    with torch.no_grad():
        for layer, gone in zip(layers_of(teacher), (1, 2), strict=True):
            silence(layer, "heads", list(range(8 * gone, 8 * gone + 8)), teacher)
        torch.testing.assert_close(student(IDS).logits, teacher(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("llama", Widths(16, 4, 20)), ("qwen3", Widths(16, 2, 8)), ("gpt2", None), ("opt", Widths(16, 4, 24))],
)
def test_a_narrower_student_loads_anywhere_and_has_its_own_memory(
    kind: str, wanted: Widths | None, tmp_path: Path
) -> None:
    teacher = MODELS[kind]()
    sizes = sizes_of(teacher)
    wanted = wanted or Widths(sizes.head * (sizes.heads - 1), sizes.heads - 1, sizes.mlp // 2)
    before = teacher(IDS).logits.clone()
    student = cut_width(teacher, choose_widths(teacher, wanted, [tiny.batch([(3, 4), (5, 2)])]))
    found = sizes_of(student)
    assert (found.hidden, found.heads, found.mlp) == (wanted.hidden, wanted.heads, wanted.mlp)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, student(IDS).logits)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert torch.equal(teacher(IDS).logits, before)


@every_model
def test_the_most_active_stay_and_padding_has_no_say(make: Callable[[], Any]) -> None:
    model = make().double()
    lengths = [(3, 4), (5, 2), (2, 6)]
    alone, padded = tiny.batch(lengths), tiny.batch(lengths, extra_left=3, extra_right=5)
    found, again = importance(model, [alone]), importance(model, [padded])
    singly = importance(model, [one_row(alone, row) for row in (2, 0, 1)])
    for name in ("hidden", "heads", "mlp"):
        torch.testing.assert_close(getattr(found, name), getattr(again, name))
        assert getattr(found, name).max() > 0
        torch.testing.assert_close(getattr(singly, name), getattr(found, name))
    sizes = sizes_of(model)
    heads = sizes.heads - sizes.group
    chosen = choose_widths(model, Widths(sizes.head * heads, heads, sizes.mlp // 2), [alone])
    rows = [found.hidden, *found.heads, *found.mlp]
    for row, kept in zip(rows, [chosen.hidden, *chosen.heads, *chosen.mlp], strict=True):
        gone = [at for at in range(len(row)) if at not in kept.tolist()]
        assert row[kept].min() >= row[gone].max()
        assert kept.tolist() == sorted(kept.tolist())


def test_importance_of_inner_channels_by_hand() -> None:
    """Of one text: the mean size over its real tokens of what the last matrix of a layer reads."""
    model = MODELS["llama"]().double()
    batch = tiny.batch([(3, 4)], extra_right=2)
    read: list[torch.Tensor] = []
    layers_of(model)[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    found = importance(model, [batch])
    torch.testing.assert_close(found.mlp[1], read[0][0, :7].abs().mean(0).float())


def test_importance_of_heads_and_of_the_residual_stream_by_hand() -> None:
    """The root of the mean square over two texts of what it is of one; of the stream, of all norms together."""
    model = MODELS["llama"]().double()
    read: dict[str, list[torch.Tensor]] = {"o_proj": [], "q_proj": [], "gate_proj": []}
    for name, module in model.named_modules():
        if (taken := read.get(name.rpartition(".")[2])) is not None:
            module.register_forward_pre_hook(lambda _, args, taken=taken: taken.append(args[0]))
    found = importance(model, [tiny.batch([(3, 4), (3, 4)])])
    of_heads = torch.stack([states.unflatten(-1, (3, 8)).norm(dim=-1).mean(1) for states in read["o_proj"]])
    torch.testing.assert_close(found.heads, of_heads.square().mean(1).sqrt().float())
    of_stream = torch.stack([states.abs().mean(1) for states in (*read["q_proj"], *read["gate_proj"])])
    torch.testing.assert_close(found.hidden, of_stream.square().mean(1).sum(0).sqrt().float())


def test_a_narrower_student_is_set_to_write_as_its_teacher_is() -> None:
    teacher = tiny.llama()
    teacher.generation_config.top_k = 7
    student = cut_width(teacher, first_of(teacher, Widths(mlp=8)))
    assert student.generation_config.top_k == 7
    student.generation_config.top_k = 5
    assert teacher.generation_config.top_k == 7


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("llama", Widths(hidden=25), "keep_hidden is 25 but the model has 24"),
        ("llama", Widths(hidden=20), r"(?s)no such llama: .*size \(20\) is not a.*to 18 or 24, multiples of"),
        ("llama", Widths(heads=3), r"(?s)keep_heads is 3, and 2 heads of queries share.*multiple of 2"),
        ("opt", Widths(hidden=20), r"(?s)of 6 heads of 4 channels is 24 wide, and keep_hidden 20.*keep_heads to 5"),
    ],
)
def test_widths_that_cannot_be_are_refused(kind: str, wanted: Widths, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        choose_widths(MODELS[kind](), wanted, [tiny.batch([(3, 4)])])


def test_an_unknown_architecture_says_what_to_add() -> None:
    model = MODELS["llama"]()
    model.config.model_type = "novel"
    with pytest.raises(ModelError, match=r"(?s)how a novel names its weights is not known.*potstill/models/axes.py"):
        sizes_of(model)
    with pytest.raises(ModelError, match="cut in width yet"):
        sizes_of(tiny.t5(1))
