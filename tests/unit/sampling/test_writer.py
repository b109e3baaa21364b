"""The local writer: what it writes, and that it leaves the models as they were."""

from __future__ import annotations

import pytest

from potstill.errors import ConfigError, ModelError
from potstill.models.decoding import CausalDecoder
from potstill.models.families import Causal
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Mixed, Single
from potstill.sampling.sampler import sample
from potstill.sampling.writer import LocalWriter, Writer
from tests import tiny

DECODING = Decoding(9, frozenset({0}))
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17]]


def llama(seed: int) -> Causal:
    return Causal(tiny.llama(seed).double())


def test_it_writes_what_the_sampler_writes_whatever_the_slots() -> None:
    families = [llama(3), llama(4)]
    decoders = [CausalDecoder(family, 4, 7 + 9) for family in families]
    expected = sample(Mixed(0.3), decoders, PROMPTS, DECODING, seeds=[4, 5, 6, 7], slots=4)
    for slots in (1, 3, 100):
        writer: Writer = LocalWriter(Mixed(0.3), families, DECODING, slots)
        found = writer.write(PROMPTS, seeds=[4, 5, 6, 7])
        assert [response.ids for response in found] == [response.ids for response in expected]
        assert found[2].behaviour_logprobs == pytest.approx(expected[2].behaviour_logprobs, abs=1e-10)


def test_it_sees_the_weights_of_the_moment() -> None:
    family = llama(3)
    writer = LocalWriter(Single(), [family], DECODING, 2)
    before = writer.write(PROMPTS, seeds=range(4))
    family.model.load_state_dict(llama(4).model.state_dict())
    assert writer.write(PROMPTS, seeds=range(4)) == LocalWriter(Single(), [llama(4)], DECODING, 2).write(
        PROMPTS, seeds=range(4)
    )
    assert writer.write(PROMPTS, seeds=range(4)) != before


def test_dropout_is_off_while_it_writes_and_as_it_was_afterwards() -> None:
    family = Causal(tiny.gpt2(3, dropout=0.5).double())
    still = [r.ids for r in LocalWriter(Single(), [family], DECODING, 2).write(PROMPTS, seeds=range(4))]
    family.train()
    teacher = Causal(tiny.gpt2(3, dropout=0.5).double())
    for policy, families in ((Single(), [family]), (Mixed(0.5), [family, teacher])):
        assert [r.ids for r in LocalWriter(policy, families, DECODING, 2).write(PROMPTS, seeds=range(4))] == still
        assert all(part.training for part in family.modules())
        assert not any(part.training for part in teacher.modules())


def test_the_last_token_has_room_and_one_more_is_refused() -> None:
    """The model has 256 positions."""
    writer = LocalWriter(Single(), [llama(3)], Decoding(6, frozenset(), temperature=0), 1)
    assert [len(response.ids) for response in writer.write([[5] * 250], seeds=[0])] == [6]
    with pytest.raises(ModelError, match="256 positions"):
        writer.write([[5] * 251], seeds=[0])


def test_no_prompts_get_no_responses() -> None:
    assert LocalWriter(Single(), [llama(3)], DECODING, 2).write([], seeds=[]) == []


def test_empty_prompts_and_missing_seeds_are_refused() -> None:
    writer = LocalWriter(Single(), [llama(3)], DECODING, 2)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        writer.write([[5], []], seeds=[0, 1])
    with pytest.raises(ValueError, match="1 seeds for 2 prompts"):
        writer.write([[5], [6]], seeds=[0])


def test_models_that_do_not_fit_the_policy_are_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="1 models for Mixed, which takes 2"):
        LocalWriter(Mixed(0.2), [llama(3)], DECODING, 2)
    with pytest.raises(ConfigError, match="slots is 0"):
        LocalWriter(Single(), [llama(3)], DECODING, 0)
