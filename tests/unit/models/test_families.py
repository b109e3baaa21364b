"""The family adapter: states that predict each response token, whatever the padding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.errors import ModelError, Stopped
from potstill.models.families import Causal, check_projection, evaluating, left_aligned
from potstill.models.loading import load
from tests import tiny

LENGTHS = [(3, 9), (7, 1), (1, 14), (5, 6)]


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])
def test_head_of_states_is_the_models_own_logits(make: Any) -> None:
    model = make().double()
    family = Causal(model)
    batch = tiny.batch(LENGTHS, extra_left=2, extra_right=1)
    ours = family.head(family(batch))
    for row, (p, r) in enumerate(LENGTHS):
        ids = torch.cat([batch.prompt_ids[row][batch.prompt_mask[row]], batch.response_ids[row][:r]])
        own = model(ids[None]).logits[0, p - 1 : -1]
        torch.testing.assert_close(ours[row, :r], own, rtol=0, atol=1e-12)


def test_a_real_token_with_the_pad_id_is_not_hidden() -> None:
    """pad == eos in most models: masks come from lengths, so an end-of-sequence in the middle still counts."""
    model = tiny.llama().double()
    family = Causal(model)
    batch = tiny.batch([(4, 5)], extra_left=3)
    batch.prompt_ids[0, 4] = 0
    batch.response_ids[0, 2] = 0
    ids = torch.cat([batch.prompt_ids[0, 3:], batch.response_ids[0]])
    own = model(ids[None]).logits[0, 3:-1]
    torch.testing.assert_close(family.head(family(batch))[0], own, rtol=0, atol=1e-12)


def test_left_aligned_is_no_wider_than_the_longest_row() -> None:
    batch = tiny.batch([(6, 1), (1, 6)])
    ids, lengths = left_aligned(batch)
    assert ids.shape == (2, 7)
    assert lengths.tolist() == [6, 1]


def test_vocabulary_is_cut_to_the_shared_size() -> None:
    family = Causal(tiny.llama(), vocab_size=290)
    batch = tiny.batch(LENGTHS)
    assert family.head(family(batch)).shape[-1] == 290


def test_soft_capped_logits_are_the_models_own() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=tiny.VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=3.0, initializer_range=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    family = Causal(model)
    check_projection(family, "gemma")
    ids = torch.arange(1, 7)[None]
    assert family.head(model.base_model(ids).last_hidden_state).abs().max() < 3


def test_logits_that_a_model_scales_are_the_models_own() -> None:
    """Granite divides by its number, Cohere multiplies with it."""
    from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": tiny.VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5,
    }  # fmt: skip
    torch.manual_seed(0)
    check_projection(Causal(GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0)).eval()), "granite")
    check_projection(Causal(CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.25)).eval()), "cohere")


def test_a_model_with_unknown_logits_is_refused() -> None:
    model = tiny.llama()
    own_forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = own_forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = scaled  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"odd: its logits differ.*\n.*families.py"):
        check_projection(Causal(model), "odd")


def test_a_model_whose_logits_are_no_numbers_is_refused() -> None:
    """Nothing is larger than nan, and nothing smaller."""
    model = tiny.llama()
    torch.nn.init.constant_(model.base_model.norm.weight, math.nan)
    with pytest.raises(ModelError, match="odd: its logits differ by nan"):
        check_projection(Causal(model), "odd")


def test_what_was_kept_from_training_is_so_after_a_look() -> None:
    model = tiny.gpt2(dropout=0.1).train()
    model.transformer.drop.eval()
    family = Causal(model)
    model.transformer.drop.eval()  # the adapter sets all modules alike when it is made
    with evaluating(family):
        assert not any(module.training for module in family.modules())
    assert not model.transformer.drop.training
    assert all(module.training for module in family.modules() if module is not model.transformer.drop)


def test_a_stop_while_a_model_is_loaded_is_a_stop_and_no_broken_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    def stopping(*_: Any, **__: Any) -> Any:
        raise Stopped("Ctrl-C outside training, with everything saved", exit_code=130)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", stopping)
    with pytest.raises(Stopped):
        load(str(tiny.save(tiny.llama(1), tmp_path / "m")))
