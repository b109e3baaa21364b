"""Where a prompt ends and its response begins, for any text and limits, on tokenizers that frame a text differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from potstill.data.examples import Example, Tokenised, Unusable
from potstill.data.inspect import pieces
from potstill.data.tokenise import Template, check_example, prompt_text, tokenise
from potstill.models import embedded
from potstill.sources.dataset import batches
from tests import tiny
from tests.unit.data.conftest import CHAT_TEMPLATE, TEXT, make_tokenizer

Made = tuple[Any, int]  # a tokenizer, and how many tokens it puts after a text
LOOSE = 100_000
# Some tokenizers lose much of what is drawn, which a test then passes over.
several = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])

# --- texts ------------------------------------------------------------------------------------------------------------

COMPOSED = ["👩‍👩‍👧🏽", "e\u0301", "\u0301", "東京", "한국", "\u200d", "\ufeff", "\u00a0", "\u2581", "ﬁ"]
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n"]
MARKS = ["</", "s>", "</s", "/s>", "</s>", "<s>", "<end>", "[SEP]", "[sep]", "<|endoftext|>", "<|im_end|>", "<0x0A>"]
WORDS = ["The", " her", "on", " waits", "Answer:", "12", "=", "ing", " naïve", "."]


def of_pieces(pieces: Sequence[str]) -> st.SearchStrategy[str]:
    """Texts of these and of any characters."""
    characters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
    return st.lists(st.one_of(st.sampled_from(pieces), characters), max_size=7).map("".join)


text = of_pieces(COMPOSED + SPACES + MARKS + WORDS)
# For tests about texts without marks: few are drawn that they cannot be about.
mostly_unmarked = st.one_of(*[of_pieces(COMPOSED + SPACES + WORDS)] * 4, text)

# --- tokenizers -------------------------------------------------------------------------------------------------------


def trained(core: Tokenizer, trainer: Any, frame: str, eos: str, **names: str) -> Any:
    """A tokenizer of a few pieces, with ``frame`` around a text."""
    core.train_from_iterator(TEXT, trainer)
    marks = [mark for mark in frame.split() if mark != "$A"]
    special = [(mark, core.token_to_id(mark)) for mark in marks]
    core.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, pad_token=eos, **names)


def wordpiece() -> Any:
    """As BERT's: no capitals, no accents, words apart."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    return trained(core, trainer, "[CLS] $A [SEP]", "[SEP]", unk_token="[UNK]", cls_token="[CLS]")


def unigram() -> Any:
    """As T5's: other forms of a letter are made one, a space before the first word, an end after the last."""
    core = Tokenizer(models.Unigram())
    core.normalizer, core.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    return trained(core, trainer, "$A </s>", "</s>", unk_token="<unk>")


def digits() -> Any:
    """Of sums and nothing else, as in studies of arithmetic: it knows no letter."""
    vocabulary = {piece: index for index, piece in enumerate(["<s>", "</s>", *"0123456789+-*/=() ."])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", bos_token="<s>")


BUILT: dict[str, Callable[[], Made]] = {
    "tiny": lambda: (tiny.tokenizer(), 0),
    "bos": lambda: (make_tokenizer("<s> $A"), 0),
    "eos": lambda: (make_tokenizer("$A </s>"), 1),
    "bos_and_eos": lambda: (make_tokenizer("<s> $A </s>"), 1),
    "bos_is_eos": lambda: (make_tokenizer("</s> $A"), 0),
    "one_for_both": lambda: (make_tokenizer("</s> $A </s>"), 1),
    "wordpiece": lambda: (wordpiece(), 1),
    "unigram": lambda: (unigram(), 1),
}
REAL = {"gpt2": "tokenizers/gpt2", "mistral": "tokenizers/mistral", "stories260k": "stories260k"}
EMBEDDED = "smollm2-135m-instruct"
BYTE_LEVEL = ["tiny", "bos", "eos", "bos_and_eos", "bos_is_eos", "one_for_both", "gpt2", EMBEDDED]
SENTENCEPIECE = ["mistral", "stories260k"]
NAMES = [*BUILT, *REAL, EMBEDDED]


def real_folder(request: pytest.FixtureRequest, name: str) -> Path:
    if name != EMBEDDED:
        return Path(request.getfixturevalue("data_dir")) / REAL[name]
    return next(iter(embedded.cache_root().glob(f"{EMBEDDED}-*/")), Path("absent"))


@pytest.fixture(scope="module")
def load(request: pytest.FixtureRequest) -> Callable[[str], Made]:
    """Tokenizers by name, made once; one without a chat template has been given one."""

    @cache
    def made(name: str) -> Made:
        if name in BUILT:
            tokenizer, at_end = BUILT[name]()
        else:
            folder = real_folder(request, name)
            if not (folder / "tokenizer.json").is_file():
                pytest.skip(f"needs the real tokenizer of {name}")
            tokenizer, at_end = AutoTokenizer.from_pretrained(folder), 0
        tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
        return tokenizer, at_end

    return made


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, load: Callable[[str], Made]) -> Made:
    return load(request.param)


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level(request: pytest.FixtureRequest, load: Callable[[str], Made]) -> Any:
    return load(request.param)[0]


@pytest.fixture(scope="module", params=SENTENCEPIECE)
def sentencepiece(request: pytest.FixtureRequest, load: Callable[[str], Made]) -> Any:
    return load(request.param)[0]


@pytest.fixture(scope="module", params=["none", "chat"])
def template(request: pytest.FixtureRequest) -> Template:
    return "chat" if request.param == "chat" else "none"


# --- what is compared with --------------------------------------------------------------------------------------------


def fed(made: Made, template: Template, prompt: str) -> list[int]:
    """The prompt as transformers alone makes it for a model that is to write on."""
    tokenizer, at_end = made
    if template == "chat":
        messages = [{"role": "user", "content": prompt}]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    ids = tokenizer(prompt)["input_ids"]
    return list(ids[: len(ids) - at_end])


def usable(tokenizer: Any, template: Template, prompt: str, response: str) -> Example:
    """The row, if ``prepare`` would take it."""
    row = Example(prompt, response, f"{prompt}|{response}")
    try:
        return check_example(row, tokenizer, template)
    except Unusable:
        assume(False)
        raise


def rows_of(
    tokenizer: Any, template: Template, examples: Sequence[Example], most_asked: int = LOOSE, most_said: int = LOOSE
) -> list[Any]:
    return list(
        tokenise(examples, tokenizer, template=template, max_prompt_tokens=most_asked, max_response_tokens=most_said)
    )


def plain(tokenizer: Any, *texts: str) -> bool:
    """Whether the texts have none of the tokenizer's marks in them, which are no text to it."""
    return not any(mark in one for one in texts for mark in tokenizer.get_added_vocab())


def lossless(tokenizer: Any, *texts: str) -> bool:
    """Whether the texts come back: some vocabularies lack a byte that no character in use has."""
    return all(decoded(tokenizer, tokenizer(one, add_special_tokens=False)["input_ids"]) == one for one in texts)


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


# --- one row ----------------------------------------------------------------------------------------------------------


@several
@example(prompt="", response="Once")
@example(prompt="The her", response="on waits.")
@example(prompt="</", response="s>")
@example(prompt="a</s>", response="b</s>")
@example(prompt="<s>The", response=" heron")
@given(prompt=text, response=text)
def test_a_prompt_is_what_inference_feeds_and_a_response_ends_once(
    made: Made, template: Template, prompt: str, response: str
) -> None:
    tokenizer, _ = made
    asked = fed(made, template, prompt)
    (row,) = rows_of(tokenizer, template, [usable(tokenizer, template, prompt, response)])
    if not isinstance(row, Tokenised):
        assert row == ("empty_response" if asked else "empty_prompt")
        return
    assert list(row.prompt_ids) == asked
    assert row.response_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in row.response_ids[:-1]
    assert len(row.response_ids) > 1
    assert not row.truncated


@several
@example(prompt="The her", response="on waits.", most_asked=9, most_said=1)
@given(prompt=text, response=text, most_asked=st.integers(1, 30), most_said=st.integers(1, 12))
def test_limits_leave_out_or_cut_and_say_so(
    made: Made, template: Template, prompt: str, response: str, most_asked: int, most_said: int
) -> None:
    """Of a cut response the first tokens stay, as they were; without its end it says that it is cut."""
    tokenizer, _ = made
    row = usable(tokenizer, template, prompt, response)
    (whole,), (cut,) = (rows_of(tokenizer, template, [row], *most) for most in ((), (most_asked, most_said)))
    asked = fed(made, template, prompt)
    assert (cut == "long_prompt") == (len(asked) > most_asked)
    if cut == "long_prompt" or not isinstance(whole, Tokenised):
        return
    assert cut.prompt_ids == whole.prompt_ids
    assert cut.response_ids == whole.response_ids[:most_said]
    assert cut.truncated == (len(whole.response_ids) > most_said)
    assert cut.truncated == (tokenizer.eos_token_id not in cut.response_ids)
    assert (cut.prompt, cut.response) == (prompt, response)


@several
@example(prompt="The her", response="on waits.")
@example(prompt="e", response="\u0301")
@given(prompt=mostly_unmarked, response=mostly_unmarked)
def test_bytes_come_back_each_on_its_own_side(byte_level: Any, template: Template, prompt: str, response: str) -> None:
    """Prompt and response decode to themselves apart, so no byte of one is in the other's tokens."""
    row = usable(byte_level, template, prompt, response)
    assume(plain(byte_level, prompt, response) and lossless(byte_level, prompt, response))
    (found,) = rows_of(byte_level, template, [row])
    if found == "empty_prompt":
        return
    assert decoded(byte_level, found.response_ids) == response
    framed = prompt_text(row, byte_level, template)
    without_frame = template == "none"  # a chat template's marks are text, what the tokenizer adds is not
    assert byte_level.decode(found.prompt_ids, skip_special_tokens=without_frame) == framed
    shown = [piece.text for piece in pieces(found, byte_level) if piece.scored and not piece.special]
    assert "".join(shown) == response


@several
@example(prompt="Once upon a time", response=", there was")
@example(prompt="Hel", response="lo world")
@given(prompt=mostly_unmarked, response=mostly_unmarked)
def test_sentencepiece_text_comes_back_but_for_a_space_where_it_would_have_merged(
    sentencepiece: Any, prompt: str, response: str
) -> None:
    row = usable(sentencepiece, "none", prompt, response)
    assume(plain(sentencepiece, prompt, response) and "\u2581" not in prompt + response)
    (found,) = rows_of(sentencepiece, "none", [row])
    both = decoded(sentencepiece, found.prompt_ids + found.response_ids).lstrip(" ")  # its own decoding drops those
    whole, alone = (sentencepiece(part)["input_ids"] for part in (prompt + response, prompt))
    apart = [] if whole[: len(alone)] == alone else [f"{prompt} {response}".lstrip(" ")]
    assert both in [(prompt + response).lstrip(" "), *apart]


# --- many rows --------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.tuples(text, text), min_size=1, max_size=6),
    size=st.integers(1, 7),
    most_said=st.integers(1, 15),
    pad=st.integers(0, 3),
)
def test_rows_are_the_same_alone_together_and_in_any_micro_batches(
    made: Made, template: Template, rows: list[tuple[str, str]], size: int, most_said: int, pad: int
) -> None:
    """The loss mask is the response and nothing else, whichever id pads, the end of a sequence among them."""
    tokenizer, _ = made
    examples = [usable(tokenizer, template, *row) for row in rows]
    together = rows_of(tokenizer, template, examples, most_said=most_said)
    alone = [rows_of(tokenizer, template, [one], most_said=most_said)[0] for one in examples]
    assert together == alone
    kept = [row for row in together if isinstance(row, Tokenised)]
    seen = [
        (id, pair)
        for batch in batches(kept, size, pad or tokenizer.eos_token_id)
        for id, pair in zip(batch.example_ids, masked(batch), strict=True)
    ]
    assert seen == [(row.example_id, ([*row.prompt_ids, *row.response_ids], list(row.response_ids))) for row in kept]


def masked(batch: Any) -> list[tuple[list[int], list[int]]]:
    """Of each row the tokens that a model reads, and those that the loss is about."""
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
    read = torch.cat([batch.prompt_mask, batch.response_mask], 1)
    scored = torch.cat([torch.zeros_like(batch.prompt_mask), batch.response_mask], 1)
    return [(row[r].tolist(), row[s].tolist()) for row, r, s in zip(ids, read, scored, strict=True)]


# --- tokenizers that know little, or make much alike ------------------------------------------------------------------


def test_a_tokenizer_without_letters_keeps_the_whole_prompt() -> None:
    tokenizer = digits()
    (row,) = rows_of(tokenizer, "none", [Example("3 + 4 =", "7", "id")])
    assert list(row.prompt_ids) == tokenizer("3 + 4 =")["input_ids"]
    assert list(row.response_ids) == [*tokenizer("7", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_an_end_that_the_tokenizer_makes_of_other_letters_is_no_end_inside() -> None:
    """Wide letters are narrow ones to NFKC, and so this text is the end's own, which the check of the text passes."""
    tokenizer = unigram()
    row = Example("The", "a \uff1c/s\uff1e heron", "id")
    assert rows_of(tokenizer, "none", [check_example(row, tokenizer, "none")]) == ["inner_end"]
