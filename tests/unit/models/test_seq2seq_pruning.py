"""Students cut from encoder-decoder models: two stacks of layers, and a bias that lives in the first of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill import recipe
from potstill.checks.dry.sizes import memory_of
from potstill.errors import ModelError
from potstill.models import pruning
from potstill.models.families import family_of
from potstill.models.layout import DECODER, ENCODER, auto_class, stacks_of
from potstill.recipe import PrunedStudent
from potstill.types import Batch
from tests import tiny

MAKERS: dict[str, Any] = {
    "t5": lambda: tiny.t5(1, layers=4, encoder_layers=3),
    "t5_gated_untied": lambda: tiny.t5(1, layers=4, encoder_layers=3, gated=True, tied=False),
    "bart": lambda: tiny.bart(1, layers=4, encoder_layers=3),
}
every_kind = pytest.mark.parametrize("kind", MAKERS)
IDS = torch.randint(3, tiny.VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        said: Tensor = model(input_ids=IDS, decoder_input_ids=IDS).logits
    return said


@every_kind
def test_keeping_all_layers_is_the_teacher_bit_for_bit(kind: str) -> None:
    teacher = MAKERS[kind]()
    assert torch.equal(logits(pruning.cut_layers(teacher, range(4), range(3))), logits(teacher))
    assert torch.equal(logits(pruning.cut_layers(teacher, range(4))), logits(teacher))  # all of the encoder's


@every_kind
def test_a_cut_model_is_the_teacher_with_the_other_layers_taken_out(kind: str) -> None:
    """What the stack's own first layer tells the others, T5's relative bias, is told by the layer that is first now."""
    teacher, student = MAKERS[kind](), pruning.cut_layers(MAKERS[kind](), [1, 3], [2])
    stacks = stacks_of(teacher)
    shared = {
        name: [m for m in stack.layers[0].modules() if hasattr(m, "relative_attention_bias")]
        for name, stack in stacks.items()
    }
    for name, kept in ((DECODER, [1, 3]), (ENCODER, [2])):
        own, layers = stacks_of(student)[name].layers, stacks[name].layers
        for new, old in enumerate(kept):
            ours, theirs = own[new].state_dict(), layers[old].state_dict()
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        for holder in shared[name]:
            assert torch.equal(own[0].state_dict()[BIAS], holder.relative_attention_bias.weight)
    assert bool(shared[DECODER]) == kind.startswith("t5")
    # Taken out by hand: a layer becomes the identity by having nothing to add.
    if kind != "bart":
        silence(teacher, {DECODER: [0, 2], ENCODER: [0, 1]})
        torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=1e-5)


def silence(model: Any, which: dict[str, list[int]]) -> None:
    """T5's layers that add nothing to what goes through them; the bias in the first is still there."""
    with torch.no_grad():
        for name, indices in which.items():
            for index in indices:
                for parameter_name, parameter in stacks_of(model)[name].layers[index].named_parameters():
                    if parameter_name.endswith((".o.weight", ".wo.weight")):
                        parameter.zero_()


@every_kind
def test_the_config_says_how_many_layers_there_are(kind: str) -> None:
    config = pruning.cut_layers(MAKERS[kind](), [0, 3], [1]).config
    counts = ("encoder_layers", "decoder_layers") if kind == "bart" else ("num_layers", "num_decoder_layers")
    assert [getattr(config, name) for name in counts] == [1, 2]
    assert config.num_hidden_layers == 1  # of the encoder, as both families have it


@every_kind
def test_a_student_loads_anywhere_and_ties_stay(kind: str, tmp_path: Path) -> None:
    student = pruning.cut_layers(MAKERS[kind](), [1, 2], [2])
    embedding, head = student.get_input_embeddings().weight, student.get_output_embeddings().weight
    assert (embedding is head) == (kind != "t5_gated_untied")
    student.save_pretrained(tmp_path)
    again = auto_class(student.config).from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(student))


def test_a_head_that_is_not_tied_is_not_overwritten_by_the_embedding() -> None:
    """The config of every T5 says that they are tied."""
    teacher = MAKERS["t5_gated_untied"]()
    student = pruning.cut_layers(teacher, [0], [0])
    assert teacher.config.tie_word_embeddings
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)
    assert torch.equal(student.shared.weight, teacher.shared.weight)
    assert student.encoder.embed_tokens.weight is student.shared.weight


def test_a_student_writes_with_its_teachers_settings_and_may_change_them() -> None:
    teacher = MAKERS["bart"]()
    teacher.generation_config.no_repeat_ngram_size = 3
    student = pruning.cut_layers(teacher, [1], [2])
    assert student.generation_config.no_repeat_ngram_size == 3
    student.generation_config.no_repeat_ngram_size = 4
    assert teacher.generation_config.no_repeat_ngram_size == 3


def test_a_student_does_not_share_memory_with_its_teacher() -> None:
    teacher = MAKERS["t5"]()
    before = logits(teacher)
    with torch.no_grad():
        for parameter in pruning.cut_layers(teacher, [2], [1]).parameters():
            parameter.add_(1)
    assert torch.equal(logits(teacher), before)


def test_block_influence_finds_the_layers_that_do_nothing_in_one_pass() -> None:
    model = MAKERS["t5"]().double()
    silence(model, {DECODER: [2], ENCODER: [1]})
    batches = [tiny.batch([(3, 9), (7, 2)], extra_left=2, extra_right=3), tiny.batch([(5, 5)], seed=1)]
    calls: list[Any] = []
    hook = model.encoder.register_forward_hook(lambda *_: calls.append(1))
    influence = pruning.block_influence(model, batches)
    hook.remove()
    assert len(calls) == 2
    assert influence[DECODER][2] == pytest.approx(0, abs=1e-6)
    assert influence[ENCODER][1] == pytest.approx(0, abs=1e-6)
    assert influence[DECODER][[0, 1, 3]].min() > 1e-3
    assert influence[ENCODER][[0, 2]].min() > 1e-3
    kept = pruning.choose_layers(model, 3, "block_influence", batches, keep_encoder=2)
    assert (kept[DECODER].layers, kept[ENCODER].layers) == ((0, 1, 3), (0, 2))


@pytest.mark.parametrize("keep", [4, [0, 1, 2, 3], 3])
def test_the_encoders_layers_are_chosen_by_influence_though_the_decoder_has_none_to_choose(keep: Any) -> None:
    model = MAKERS["t5"]().double()
    silence(model, {ENCODER: [0]})
    kept = pruning.choose_layers(model, keep, "block_influence", [tiny.batch([(5, 5)])], keep_encoder=2)
    assert kept[ENCODER].layers == (1, 2)


@every_kind
def test_block_influence_looks_at_real_tokens_alone(kind: str) -> None:
    """Rows with padding beside each other, and the same rows one by one."""
    model = MAKERS[kind]().double()
    batch = tiny.batch([(3, 9), (7, 2)], extra_left=4, extra_right=5)
    together = pruning.block_influence(model, [batch])
    apart = pruning.block_influence(model, [alone(batch, 0), alone(batch, 1)])
    for name, count in {DECODER: 4, ENCODER: 3}.items():
        assert together[name].shape == (count,)
        torch.testing.assert_close(together[name], apart[name], rtol=0, atol=1e-6)


def alone(batch: Batch, row: int) -> Batch:
    prompt, response = batch.prompt_mask[row], batch.response_mask[row]
    ids = (batch.prompt_ids[row][prompt][None], prompt[prompt][None])
    return Batch(*ids, batch.response_ids[row][response][None], response[response][None], ("row",))


@pytest.mark.parametrize(
    ("keep", "keep_encoder", "expected"),
    [
        (2, None, ((0, 3), (0, 2))),  # as many
        (4, None, ((0, 1, 2, 3), (0, 1, 2))),  # all that it has
        ([1, 2], None, ((1, 2), (0, 1, 2))),  # all where the decoder's are named
        (2, 1, ((0, 3), (0,))),
        ([3, 0], [2, 0], ((0, 3), (0, 2))),
    ],
)
def test_what_the_encoder_keeps(keep: Any, keep_encoder: Any, expected: Any) -> None:
    kept = pruning.choose_layers(MAKERS["t5"](), keep, "even", [], keep_encoder=keep_encoder)
    assert (kept[DECODER].layers, kept[ENCODER].layers) == expected


@pytest.mark.parametrize(
    ("keep", "keep_encoder", "message"),
    [
        (9, None, "keep_layers is 9 but the model has 4 layers"),
        (2, 5, "keep_encoder_layers is 5 but the model has 3 layers"),
        (2, [0, 3], "keep_encoder_layers: layer 3 is not there: the model has 3"),
        (2, [1, 1], "keep_encoder_layers: a layer stands in it twice"),
    ],
)
def test_layers_that_are_not_there_are_refused(keep: Any, keep_encoder: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        pruning.choose_layers(MAKERS["t5"](), keep, "even", [], keep_encoder=keep_encoder)


def test_a_causal_model_has_no_encoder_to_keep_layers_of() -> None:
    with pytest.raises(ModelError, match=r"(?s)keep_encoder_layers is 2, and the model has no encoder.*leave student"):
        pruning.choose_layers(tiny.llama(), 2, "even", [], keep_encoder=2)


@every_kind
def test_frozen_embeddings_are_the_shared_one_and_the_head(kind: str) -> None:
    model = MAKERS[kind]()
    pruning.freeze_embeddings(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    heads = {"lm_head.weight"} if kind == "t5_gated_untied" else set()
    assert frozen == {"model.shared.weight" if kind == "bart" else "shared.weight"} | heads
    family_of(model)(tiny.batch([(2, 3)])).sum().backward()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_memory_estimate_is_what_the_cut_model_has(kind: str, tmp_path: Path) -> None:
    teacher = MAKERS[kind]()
    folder = str(tiny.save(teacher, tmp_path / "m"))
    student = PrunedStudent(keep_layers=2, keep_encoder_layers=1, freeze_embeddings=False)
    made = recipe.Recipe.model_validate(
        {
            "stages": [
                {
                    "teacher": folder,
                    "student": student.model_dump(),
                    "streams": [{"signal": "logits", "terms": [{"objective": "forward_kl"}]}],
                    "budget": {"steps": 1},
                }
            ]
        }
    )
    found = memory_of(made, allow_remote_code=False)
    cut = pruning.cut_layers(teacher, [1, 2], [0])
    assert found["teacher"] == 4 * sum(p.numel() for p in teacher.parameters())
    assert found["student"] == 4 * sum(p.numel() for p in cut.parameters())
    in_bfloat16 = memory_of(made.model_copy(update={"dtype": "bfloat16"}), allow_remote_code=False)
    assert in_bfloat16 == found | {"teacher": found["teacher"] // 2}
