"""Students cut from a larger model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from potstill.errors import ModelError
from potstill.models import pruning
from tests import tiny

MAKERS = pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])
IDS = torch.randint(1, tiny.VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))


@MAKERS
def test_keeping_all_layers_is_the_teacher_bit_for_bit(make: Any) -> None:
    teacher = make(layers=4)
    student = pruning.cut_layers(teacher, range(4))
    assert torch.equal(student(IDS).logits, teacher(IDS).logits)


@MAKERS
def test_kept_layers_are_the_teachers_own(make: Any) -> None:
    teacher = make(layers=5)
    student = pruning.cut_layers(teacher, [0, 3, 4])
    assert student.config.num_hidden_layers == 3
    for new, old in enumerate([0, 3, 4]):
        ours, theirs = pruning.layers_of(student)[new].state_dict(), pruning.layers_of(teacher)[old].state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_student_does_not_share_memory_with_its_teacher() -> None:
    teacher = tiny.llama()
    before = teacher(IDS).logits.clone()
    student = pruning.cut_layers(teacher, [0, 1])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert torch.equal(teacher(IDS).logits, before)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied_and_the_student_loads_anywhere(tied: bool, tmp_path: Path) -> None:
    student = pruning.cut_layers(tiny.llama(tied=tied), [0, 2])
    embedding, head = student.get_input_embeddings().weight, student.get_output_embeddings().weight
    assert (embedding.data_ptr() == head.data_ptr()) == tied
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, student(IDS).logits)


def test_generation_with_a_cut_models_cache() -> None:
    """Layers carry their index for the key/value cache; a gap in it would break generation."""
    student = pruning.cut_layers(tiny.llama(layers=4), [1, 3])
    cached = student.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None)
    plain = student.generate(IDS, max_new_tokens=5, do_sample=False, use_cache=False, eos_token_id=None)
    assert torch.equal(cached, plain)


def test_block_influence_finds_the_layer_that_does_nothing() -> None:
    model = tiny.llama(layers=4).double()
    with torch.no_grad():
        layer = pruning.layers_of(model)[2]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    batches = [tiny.batch([(3, 9), (7, 2)]), tiny.batch([(5, 5)], seed=1)]
    influence = pruning.block_influence(model, batches)["decoder"]
    assert influence[2] == pytest.approx(0, abs=1e-6)
    assert influence[[0, 1, 3]].min() > 1e-3
    kept = pruning.choose_layers(model, 3, "block_influence", batches)["decoder"]
    assert (kept.layers, kept.of_layers) == ((0, 1, 3), 4)
    assert kept.influence is not None
    torch.testing.assert_close(kept.influence, influence)


def test_block_influence_is_one_minus_the_mean_cosine_over_real_tokens() -> None:
    model = tiny.llama(layers=2).double()
    batch = tiny.batch([(3, 9), (7, 2)], extra_left=4, extra_right=5)
    expected = []
    for row in range(2):
        ids = torch.cat(
            [batch.prompt_ids[row][batch.prompt_mask[row]], batch.response_ids[row][batch.response_mask[row]]]
        )
        entering = model.model.embed_tokens(ids[None])
        after_first = model(ids[None], output_hidden_states=True).hidden_states[1]
        expected.append(1 - torch.cosine_similarity(entering[0], after_first[0], dim=-1))
    assert pruning.block_influence(model, [batch])["decoder"][0].item() == pytest.approx(
        torch.cat(expected).mean().item(), abs=1e-6
    )


def test_even_spacing_keeps_both_ends() -> None:
    assert pruning.evenly_spaced(3, 7) == (0, 3, 6)
    assert pruning.evenly_spaced(1, 7) == (0,)
    assert pruning.choose_layers(tiny.llama(layers=5), 3, "even", [])["decoder"].layers == (0, 2, 4)
    assert pruning.choose_layers(tiny.llama(layers=3), 3, "block_influence", [])["decoder"].layers == (0, 1, 2)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (9, "keep_layers is 9 but the model has 3 layers"),
        ([0, 7], "layer 7 is not there"),
        ([1, 1], "stands in it twice"),
    ],
)
def test_layers_that_are_not_there_are_refused(keep: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        pruning.choose_layers(tiny.llama(), keep, "even", [])


def test_an_unknown_layout_says_what_to_add() -> None:
    model = tiny.llama()
    model.model.blocks = model.model.layers
    del model.model.layers
    with pytest.raises(ModelError, match="LAYER_LISTS"):
        pruning.cut_layers(model, [0])


def test_frozen_embeddings_are_both_frozen() -> None:
    model = tiny.llama(tied=False)
    pruning.freeze_embeddings(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"model.embed_tokens.weight", "lm_head.weight"}
