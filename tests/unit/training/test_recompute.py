"""Layers computed again for the gradient: the same gradient to the last bit, in training and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from potstill import recipe
from potstill.errors import ConfigError
from potstill.models.families import Family, evaluating, family_of
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Single
from potstill.sampling.writer import LocalWriter
from potstill.training.compute import Meter
from potstill.training.recompute import recomputing
from potstill.training.trainer import training
from tests import tiny

LENGTHS = [(3, 9), (7, 2), (5, 6)]


def opt(dropout: float) -> OPTForCausalLM:
    """Its layers apply their dropout themselves, by their own flag, and some are left out at random."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=tiny.VOCAB, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=64, dropout=dropout, layerdrop=dropout / 2, init_std=0.2,
    )  # fmt: skip
    return OPTForCausalLM(config)


def bart(dropout: float) -> Any:
    model = tiny.bart()
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = dropout
    return model


MAKE: dict[str, Callable[[float], Any]] = {
    "llama": lambda _: tiny.llama(),
    "gpt2": lambda dropout: tiny.gpt2(dropout=dropout),
    "opt": opt,
    "t5": lambda dropout: tiny.t5(dropout=dropout),
    "bart": bart,
}


def gradients(kind: str, *, wanted: bool, dropout: bool) -> tuple[dict[str, Tensor], int]:
    """The gradient of each weight, and how often a layer was run for it."""
    family, batch, runs = family_of(MAKE[kind](0.2)), tiny.batch(LENGTHS), []
    with training(family, dropout=dropout), recomputing(family, wanted=wanted, dropout=dropout):
        for layer in family.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                inner = next(module for module in layer.modules() if module._parameters)  # run in every forward
                inner.register_forward_hook(lambda *_: runs.append(1))
        torch.manual_seed(3)
        family.head(family(batch))[batch.response_mask].float().logsumexp(-1).square().sum().backward()
    return {name: p.grad for name, p in family.model.named_parameters() if p.grad is not None}, len(runs)


@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "no_dropout"])
@pytest.mark.parametrize("kind", MAKE)
def test_gradients_are_the_same_to_the_last_bit(kind: str, dropout: bool) -> None:
    expected, once = gradients(kind, wanted=False, dropout=dropout)
    found, twice = gradients(kind, wanted=True, dropout=dropout)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(gradient.abs().max() > 0 for gradient in expected.values())
    assert twice == 2 * once > 0  # each layer was run again


@pytest.mark.parametrize("kind", ["gpt2", "opt", "t5"])
def test_dropout_that_is_off_stays_off(kind: str) -> None:
    """So the equality above is no accident of one seed: nothing is drawn."""
    family, batch = family_of(MAKE[kind](0.2)), tiny.batch(LENGTHS)
    with training(family, dropout=False):
        expected = family(batch)
        with recomputing(family, wanted=True, dropout=False):
            state = torch.get_rng_state()
            assert torch.equal(family(batch), expected)
            assert torch.equal(torch.get_rng_state(), state)


def written(family: Family) -> list[Any]:
    decoding = Decoding(max_new_tokens=6, stop_ids=frozenset({0}))
    return LocalWriter(Single(), [family], decoding, slots=2).write([[5, 6, 7], [8], [9, 10]], seeds=[1, 2, 3])


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "no_dropout"])
def test_sampling_and_measuring_are_as_without(kind: str, dropout: bool) -> None:
    family, batch = family_of(MAKE[kind](0.0)), tiny.batch(LENGTHS)
    with torch.no_grad():
        responses, states = written(family), family(batch)
    with training(family, dropout=dropout), recomputing(family, wanted=True, dropout=dropout):
        assert written(family) == responses
        with evaluating(family), torch.no_grad():
            assert torch.equal(family(batch), states)
        before = [module.training for module in family.modules()]
    assert any(before)  # what is recomputed stays so after a look


@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "no_dropout"])
def test_afterwards_the_model_is_as_it_was(dropout: bool) -> None:
    family = family_of(tiny.gpt2())
    with training(family, dropout=dropout), recomputing(family, wanted=True, dropout=dropout):
        assert all(layer.gradient_checkpointing for layer in family.model.transformer.h)
    assert not any(layer.gradient_checkpointing for layer in family.model.transformer.h)
    assert not any(module.training for module in family.modules())


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_what_is_computed_again_is_not_counted(kind: str) -> None:
    counts = []
    for wanted in (False, True):
        family, batch = family_of(MAKE[kind](0.0)), tiny.batch(LENGTHS)
        with training(family), recomputing(family, wanted=wanted), Meter().reading([family]) as meter:
            family.head(family(batch)).sum().backward()
        counts.append(meter.flops)
    assert counts[0] == counts[1] > 0


def test_a_model_that_cannot_is_refused() -> None:
    family = family_of(tiny.gpt2())
    family.model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match=r"gradient_checkpointing is true, and GPT2LMHeadModel.*\n?.*micro_size"):
        recomputing(family, wanted=True).__enter__()


def test_it_is_off_unless_asked_for() -> None:
    assert recipe.Stage.model_fields["gradient_checkpointing"].default is False
