"""What is kept quiet, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import T5Config

from potstill.models.architectures import built
from potstill.models.loading import load
from tests import tiny


def test_a_t5_of_version_1_1_is_written_and_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own head is kept, and its decoder's output is not scaled; the library's warning of that says otherwise."""
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    tokenizer = tiny.tokenizer()
    model = built(T5Config(vocab_size=len(tokenizer), tie_word_embeddings=False, **sizes), seed=0)
    load(str(tiny.save(tiny.llama(), tmp_path / "first")))  # any model: from here on it is quiet
    capsys.readouterr()
    model.save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    again = load(str(tmp_path / "t5")).model
    assert (*capsys.readouterr(), caplog.text) == ("", "", "")
    assert not torch.equal(again.lm_head.weight, again.shared.weight)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        both = [one(input_ids=ids, decoder_input_ids=ids).logits for one in (model, again)]
    assert torch.equal(*both)


def test_other_warnings_are_heard(caplog: pytest.LogCaptureFixture) -> None:
    from transformers.utils import logging

    logging.get_logger("transformers.modeling_utils").warning("something is missing")
    assert "something is missing" in caplog.text
