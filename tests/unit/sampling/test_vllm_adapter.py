"""What of the vLLM adapter can be tested without vLLM: refusals, and the two mappings. Its calls into vLLM are not."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.errors import ConfigError
from potstill.models.families import Causal
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Mixed, Policy, Single, Speculative
from potstill.sampling.vllm import VllmWriter, check, check_syncable, response, sampling_parameters
from tests import tiny

STOP = frozenset({7, 2})


def answer(ids: Sequence[int], logprobs: Sequence[dict[int, float]] | None) -> Any:
    """As vllm.RequestOutput: at each token, a mapping from ids to objects with a log-probability."""
    entries = logprobs and [{i: SimpleNamespace(logprob=value) for i, value in at.items()} for at in logprobs]
    return SimpleNamespace(outputs=[SimpleNamespace(token_ids=list(ids), logprobs=entries)])


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Mixed(0.2), Speculative(5)], ids=["mixed", "speculative"])
def test_policies_of_two_models_are_refused_before_anything_is_loaded(policy: Policy) -> None:
    with pytest.raises(ConfigError, match="both models' logits") as caught:
        VllmWriter("no/such/folder", policy, Decoding(5, STOP), max_tokens=64)
    assert "local sampler" in str(caught.value.fix)


def test_settings_that_vllm_has_not_or_would_change_are_refused() -> None:
    with pytest.raises(ConfigError, match="no_repeat_ngram"):
        check(Single(), Decoding(5, STOP, no_repeat_ngram=3))
    with pytest.raises(ConfigError, match=r"temperature is 0\.005"):
        check(Single(), Decoding(5, STOP, temperature=0.005))
    for temperature in (0, 0.01, 1.0):
        check(Single(), Decoding(5, STOP, temperature=temperature))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_the_extra_the_error_names_it() -> None:
    with pytest.raises(ConfigError, match="vLLM cannot be imported") as caught:
        VllmWriter("no/such/folder", Single(), Decoding(5, STOP), max_tokens=64)
    assert caught.value.fix == "pip install 'potstill[vllm]'"


def test_weights_that_cannot_be_handed_over_are_refused() -> None:
    family = Causal(tiny.llama())
    with pytest.raises(ConfigError, match="the model is on cpu"):
        check_syncable(family)
    family.model.peft_config = {}
    with pytest.raises(ConfigError, match="adapters"):
        check_syncable(family)


# --- Decoding -> sampling parameters ----------------------------------------------------------------------------------


def test_every_setting_reaches_the_engine_under_its_own_name() -> None:
    decoding = Decoding(33, STOP, temperature=0.6, top_k=11, top_p=0.8)
    assert sampling_parameters(decoding, 5) == {
        "max_tokens": 33,
        "temperature": 0.6,
        "top_k": 11,
        "top_p": 0.8,
        "seed": 5,
        "stop_token_ids": [2, 7],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


def test_no_seed_becomes_the_one_that_means_none() -> None:
    assert sampling_parameters(Decoding(5, STOP), -1)["seed"] == 2**63 - 1


# --- RequestOutput -> Response ----------------------------------------------------------------------------------------


def test_the_chosen_tokens_log_probabilities_are_taken_among_those_reported() -> None:
    found = response(answer([5, 7], [{9: -0.1, 5: -2.5}, {7: -0.25}]), Decoding(9, STOP))
    assert found.ids == (5, 7)
    assert found.behaviour_logprobs == found.student_logprobs == (-2.5, -0.25)
    assert found.importance_weights == (1.0, 1.0)
    assert found.finished


def test_a_response_that_was_cut_is_not_finished() -> None:
    assert not response(answer([7, 5], [{7: -1.0}, {5: -1.0}]), Decoding(2, STOP)).finished
    assert not response(answer([], []), Decoding(2, STOP)).finished


def test_greedy_tokens_have_probability_one_as_the_local_sampler_says() -> None:
    assert response(answer([5], [{5: -2.5}]), Decoding(9, STOP, temperature=0)).behaviour_logprobs == (0.0,)


@pytest.mark.parametrize("logprobs", [None, [{5: -1.0}], [{5: -1.0}, {9: -1.0}]], ids=["none", "too few", "another's"])
def test_tokens_without_their_log_probability_are_refused(logprobs: Any) -> None:
    with pytest.raises(ValueError, match="not theirs"):
        response(answer([5, 7], logprobs), Decoding(9, STOP))
