"""The encoder-decoder adapter: states that predict each response token, from a source that only the encoder reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MT5Config, MT5ForConditionalGeneration

from potstill.errors import ModelError
from potstill.models.families import Causal, Seq2Seq, check_projection, family_of, source_of
from potstill.models.loading import load, load_tokenizer
from potstill.models.positions import check_positions, room_for_prompt
from potstill.sampling.generate import generate
from tests import tiny

LENGTHS = [(3, 9), (7, 1), (1, 14), (5, 6)]
MAKERS: dict[str, Any] = {
    "t5": tiny.t5,
    "t5_gated_untied": lambda seed=0: tiny.t5(seed, gated=True, tied=False),
    "bart": tiny.bart,
}
every_kind = pytest.mark.parametrize("kind", MAKERS)
every_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def made(kind: str, seed: int = 0, attention: str = "sdpa") -> Seq2Seq:
    model = MAKERS[kind](seed).double()
    model.set_attn_implementation(attention)
    family = family_of(model)
    assert isinstance(family, Seq2Seq)
    return family


@every_kind
@every_attention
def test_head_of_states_is_what_the_model_says_with_labels_whatever_the_padding(kind: str, attention: str) -> None:
    """transformers shifts labels itself, from its own start token."""
    family = made(kind, attention=attention)
    batch = tiny.batch(LENGTHS, extra_left=2, extra_right=1)
    ours = family.head(family(batch))
    assert ours.shape[:2] == batch.response_ids.shape
    assert ours.isfinite().all()
    for row, (_, length) in enumerate(LENGTHS):
        source = batch.prompt_ids[row][batch.prompt_mask[row]][None]
        own = family.model(input_ids=source, labels=batch.response_ids[row, :length][None]).logits[0]
        torch.testing.assert_close(ours[row, :length], own, rtol=0, atol=1e-9)


@every_kind
def test_what_stands_in_the_padding_changes_nothing(kind: str) -> None:
    family = made(kind)
    batch = tiny.batch(LENGTHS, extra_left=2, extra_right=2)
    before = family(batch)[batch.response_mask]
    batch.prompt_ids[~batch.prompt_mask] = 77
    batch.response_ids[~batch.response_mask] = 78
    torch.testing.assert_close(family(batch)[batch.response_mask], before, rtol=0, atol=1e-12)


def test_a_real_token_with_the_pad_id_is_not_hidden() -> None:
    family = made("t5")
    batch = tiny.batch([(4, 5)], extra_left=3)
    before = family(batch)
    batch.prompt_ids[0, 4] = family.model.config.pad_token_id
    own = family.model(input_ids=batch.prompt_ids[:, 3:], labels=batch.response_ids).logits
    torch.testing.assert_close(family.head(family(batch)), own, rtol=0, atol=1e-9)
    assert (family(batch) - before).abs().max() > 1e-3


def test_sources_are_moved_to_the_left() -> None:
    batch = tiny.batch([(2, 1), (5, 1)], extra_left=3)
    source, mask = source_of(batch)
    assert mask.tolist() == [[True, True, False, False, False], [True] * 5]
    assert source[0, :2].tolist() == batch.prompt_ids[0][batch.prompt_mask[0]].tolist()


@every_kind
def test_the_projection_of_a_kind_is_known(kind: str) -> None:
    check_projection(made(kind), kind)


@pytest.mark.parametrize(
    ("kind", "spoilt"), [("t5", "scale_decoder_outputs"), ("bart", "final_logits_bias")], ids=["scale", "bias"]
)
def test_a_head_that_lacks_what_the_model_adds_is_refused(
    kind: str, spoilt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5's scale and BART's bias: were they overlooked, a check would say so before anything is trained."""
    family = made(kind)
    name = {"scale_decoder_outputs": "_transform", "final_logits_bias": "_bias"}[spoilt]
    monkeypatch.setattr(f"potstill.models.families.{name}", lambda *_: None)
    with pytest.raises(ModelError, match=r"odd: its logits differ by"):
        check_projection(family, "odd")


def test_mt5_is_one_too() -> None:
    torch.manual_seed(0)
    config = MT5Config(
        vocab_size=tiny.VOCAB, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    check_projection(family_of(MT5ForConditionalGeneration(config).eval()), "mt5")


def test_a_model_that_names_no_start_token_is_refused() -> None:
    family = made("t5")
    family.model.config.decoder_start_token_id = family.model.generation_config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="does not say what its decoder starts with"):
        family(tiny.batch(LENGTHS))


def test_the_start_token_is_the_one_that_labels_are_shifted_with() -> None:
    """Where a folder's settings for writing name another, the model's config counts, as in transformers' own shift."""
    family = made("t5")
    family.model.generation_config.decoder_start_token_id = 7
    batch = tiny.batch([(4, 5)])
    own = family.model(input_ids=batch.prompt_ids, labels=batch.response_ids).logits
    torch.testing.assert_close(family.head(family(batch)), own, rtol=0, atol=1e-9)
    assert family.generation_inputs(batch)["decoder_start_token_id"] == 0


def test_the_family_follows_the_config() -> None:
    assert isinstance(family_of(tiny.llama()), Causal)
    assert isinstance(family_of(tiny.t5()), Seq2Seq)


# --- Generation, by transformers --------------------------------------------------------------------------------------


def greedy_by_hand(family: Seq2Seq, source: torch.Tensor, steps: int, end: int) -> list[int]:
    written: list[int] = []
    for _ in range(steps):
        ids = torch.tensor([[family.model.config.decoder_start_token_id, *written]])
        following = family.model(input_ids=source[None], decoder_input_ids=ids).logits[0, -1].argmax().item()
        if following == end:
            break
        written.append(int(following))
    return written


@every_kind
@pytest.mark.parametrize("deeper", ["encoder", "decoder"])
def test_generation_returns_the_response_and_nothing_else(kind: str, deeper: str) -> None:
    """The start token is left out, and the first token of the response is not."""
    layers = {"layers": 3, "encoder_layers": 1} if deeper == "decoder" else {"layers": 1, "encoder_layers": 3}
    family = Seq2Seq((tiny.bart if kind == "bart" else tiny.t5)(3, **layers).double())
    end = family.model.config.eos_token_id
    batch = tiny.batch([(3, 1), (9, 1), (1, 1)], extra_left=2)
    answers = generate(family, batch, SimpleNamespace(eos_token_id=end), max_new_tokens=8, temperature=0, seed=0)
    assert any(len(answer) == 8 for answer in answers)
    for row, answer in enumerate(answers):
        source = batch.prompt_ids[row][batch.prompt_mask[row]]
        assert answer.tolist() == greedy_by_hand(family, source, 8, end)


# --- Positions and loading --------------------------------------------------------------------------------------------


def test_positions_hold_for_source_and_target_apart() -> None:
    bart, t5, llama = tiny.bart(positions=20).config, tiny.t5().config, tiny.llama().config
    check_positions(bart, 20, 20, "a row")
    check_positions(t5, 5000, 5000, "a row")
    for lengths in ((21, 1), (1, 21)):
        with pytest.raises(ModelError, match=r"20 positions for a source and 20 for a target, and row 7 has \d+ and"):
            check_positions(bart, *lengths, "row 7")
    check_positions(llama, 200, 56, "a row")
    with pytest.raises(ModelError, match="256 positions, and row 7 has 257 tokens"):
        check_positions(llama, 200, 57, "row 7")


def test_room_for_a_prompt() -> None:
    bart, t5, llama = tiny.bart(positions=20).config, tiny.t5().config, tiny.llama().config
    assert [room_for_prompt(config, 300, 20) for config in (bart, t5, llama)] == [20, 300, 236]
    assert room_for_prompt(bart, 300, 21) < 1


@every_kind
def test_a_folder_is_loaded_as_what_it_is(kind: str, tmp_path: Any) -> None:
    model = MAKERS[kind](1)
    loaded = load(str(tiny.save(model, tmp_path / "m")))
    assert type(loaded.model) is type(model)
    ids = torch.arange(1, 9)[None]
    assert torch.equal(
        loaded.model(input_ids=ids, decoder_input_ids=ids).logits, model(input_ids=ids, decoder_input_ids=ids).logits
    )
    assert loaded.tokenizer.encodes_pairs


def test_a_causal_models_tokenizer_encodes_no_pairs(tmp_path: Any) -> None:
    assert not load_tokenizer(str(tiny.save(tiny.llama(), tmp_path / "m"))).encodes_pairs
