"""Sources and targets of encoder-decoder models: each encoded by itself, with all that belongs to it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from potstill.data.encoding import Encoder, encoded
from potstill.data.examples import Example, Tokenised
from potstill.data.prepare import prepare
from potstill.data.prepared.building import prepare_rows
from potstill.data.shorten import shortened
from potstill.data.tokenise import choose_template, encodes_pairs, num_prompt_tokens, tokenise
from potstill.errors import DataError
from potstill.models.loading import load_tokenizer
from potstill.recipe import Data
from tests import tiny

LIMITS: dict[str, Any] = {"template": "none", "max_prompt_tokens": 99, "max_response_tokens": 99}
every_kind = pytest.mark.parametrize("kind", ["t5", "bart"])


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {"t5": tiny.t5(), "bart": tiny.bart(), "causal": tiny.llama()}
    folder = tmp_path_factory.mktemp("models")
    return {name: str(tiny.save(model, folder / name, chat=True)) for name, model in made.items()}


def of(folders: dict[str, str], kind: str) -> Any:
    return load_tokenizer(folders[kind])


def one(tokenizer: Any, prompt: str, response: str, **settings: Any) -> Any:
    (row,) = tokenise([Example(prompt, response, "x")], tokenizer, **LIMITS | settings)
    return row


def ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_t5s_source_and_target_have_their_end_and_nothing_else(folders: dict[str, str]) -> None:
    tokenizer = of(folders, "t5")
    row = one(tokenizer, "What is the sky?", "The sky is blue.")
    assert row.prompt_ids == (*ids(tokenizer, "What is the sky?"), 1)
    assert row.response_ids == (*ids(tokenizer, "The sky is blue."), 1)
    assert row.prompt_ids == tuple(tokenizer("What is the sky?")["input_ids"])


def test_a_barts_source_and_target_have_a_beginning_as_well(folders: dict[str, str]) -> None:
    tokenizer = of(folders, "bart")
    row = one(tokenizer, "What is the sky?", "The sky is blue.")
    assert row.prompt_ids == (0, *ids(tokenizer, "What is the sky?"), 2)
    assert row.response_ids == (0, *ids(tokenizer, "The sky is blue."), 2)


@every_kind
def test_a_response_is_the_same_after_any_prompt(kind: str, folders: dict[str, str]) -> None:
    """A causal model's would merge with the word it continues."""
    tokenizer = of(folders, kind)
    rows = [one(tokenizer, prompt, "ky is blue") for prompt in ("The s", "The goat ", "g")]
    assert len({row.response_ids for row in rows}) == 1


@every_kind
def test_exactly_one_end_even_where_the_text_brings_its_own(kind: str, folders: dict[str, str]) -> None:
    tokenizer = of(folders, kind)
    assert one(tokenizer, "p", "A goat.<end>").response_ids == one(tokenizer, "p", "A goat.").response_ids
    assert one(tokenizer, "p", "A <end> goat.") == "inner_end"
    assert one(tokenizer, "p", "") == "empty_response"


@every_kind
def test_a_response_at_the_limit_loses_only_its_end(kind: str, folders: dict[str, str]) -> None:
    tokenizer = of(folders, kind)
    whole = one(tokenizer, "p", "The goat ate the hat.").response_ids
    exact = one(tokenizer, "p", "The goat ate the hat.", max_response_tokens=len(whole))
    assert (exact.response_ids, exact.truncated) == (whole, False)
    cut = one(tokenizer, "p", "The goat ate the hat.", max_response_tokens=len(whole) - 1)
    assert (cut.response_ids, cut.truncated) == (whole[:-1], True)


@every_kind
def test_the_limit_of_prompts_counts_what_the_source_is_framed_with(kind: str, folders: dict[str, str]) -> None:
    tokenizer = of(folders, kind)
    prompt = "What is the colour of the sky?"
    length = num_prompt_tokens(Example(prompt, "", ""), tokenizer, "none")
    assert length == len(tokenizer(prompt)["input_ids"]) == len(one(tokenizer, prompt, "r").prompt_ids)
    assert isinstance(one(tokenizer, prompt, "r", max_prompt_tokens=length), Tokenised)
    assert one(tokenizer, prompt, "r", max_prompt_tokens=length - 1) == "long_prompt"


@every_kind
def test_a_prompt_is_shortened_until_its_frame_fits_too(kind: str, folders: dict[str, str]) -> None:
    tokenizer = of(folders, kind)
    example = Example("The goat ate the hat and the fox saw the owl. " * 6, "r", "x")
    short, left_out = shortened(example, tokenizer, "none", 60)
    assert left_out > 0
    assert 50 < num_prompt_tokens(short, tokenizer, "none") <= 60


@every_kind
def test_auto_is_never_the_chat_template(kind: str, folders: dict[str, str]) -> None:
    tokenizer = of(folders, kind)
    assert tokenizer.chat_template
    assert choose_template(Data(), tokenizer) == "none"
    assert choose_template(Data(), of(folders, "causal")) == "chat"
    assert choose_template(Data(template="chat"), tokenizer) == "chat"


@every_kind
def test_the_mark_survives_pickling(kind: str, folders: dict[str, str]) -> None:
    assert encodes_pairs(pickle.loads(pickle.dumps(of(folders, kind))))
    assert not encodes_pairs(tiny.tokenizer(kind=kind))


def test_workers_encode_pairs_too(folders: dict[str, str]) -> None:
    tokenizer = of(folders, "t5")
    encoder = Encoder(tokenizer, "none", 99, 99, shortens=False)
    examples = [Example(f"Prompt {n}.", f"Response {n}.", str(n)) for n in range(300)]
    alone, together = (list(encoded(examples, encoder, workers)) for workers in (1, 2))
    assert alone == together
    assert all(isinstance(e.ids, Tokenised) and e.ids.prompt_ids[-1] == tokenizer.eos_token_id for e in together)


@pytest.mark.parametrize("first", ["t5", "causal"])
def test_a_prepared_folder_of_the_other_kind_is_refused(first: str, folders: dict[str, str], tmp_path: Path) -> None:
    """One tokenizer, once a T5's and once a causal model's."""
    pairs, causal = of(folders, "t5"), tiny.tokenizer(kind="t5")
    maker, other = (pairs, causal) if first == "t5" else (causal, pairs)
    config = Data(path=str(tiny.data_file(tmp_path)), template="none")
    prepare_rows(config, maker, tmp_path / "made")
    there = config.model_copy(update={"path": str(tmp_path / "made")})
    expected = prepare(config, maker)
    assert tuple(prepare(there, maker).train) == tuple(expected.train)
    with pytest.raises(DataError, match="they differ in what it is for, a causal or an encoder-decoder model"):
        prepare(there, other)
