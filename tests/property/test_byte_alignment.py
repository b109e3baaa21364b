"""Tokens as bytes, and chunks that two tokenizers share: on any text, with real tokenizers and a tiny one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from potstill.data.byte_alignment import aligned_chunks, token_bytes
from potstill.errors import TeacherError
from tests import tiny

Load = Callable[[str], Any]
NAMES = ["tiny", "gpt2", "mistral"]
PAIRS = [("tiny", "gpt2"), ("gpt2", "mistral"), ("tiny", "mistral"), ("mistral", "mistral"), ("tiny", "letters")]
few = settings(max_examples=50, deadline=None)

COMPOSED = ["👩‍👩‍👧🏽", "🦊", "e\u0301", "a\u0300\u0323", "\u0301", "東京", "한국", "\u200d", "\ufeff", "\u00a0"]
CONTROLS = ["\x00", "\x7f", "\n\n", "\t", "   "]
WORDS = ["The", " goat", " sky", "<0x0A>", "[INST]", "Ġ", "12345", "!!!", " naïve"]
pieces_of_text = st.one_of(st.sampled_from(COMPOSED + CONTROLS + WORDS), st.text(max_size=6))
texts = st.lists(pieces_of_text, max_size=8).map("".join)
cut_in_bytes = st.lists(st.binary(max_size=3), max_size=10)


def real(data_dir: Path, name: str) -> Any:
    folder = data_dir / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"needs the real tokenizer in {folder}")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def load(request: pytest.FixtureRequest) -> Load:
    """Tokenizers by name, loaded once."""
    own = {"tiny": tiny.tokenizer, "letters": lambda: sentencepiece("never")}
    return cache(lambda name: own[name]() if name in own else real(request.getfixturevalue("data_dir"), name))


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest, load: Load) -> Any:
    return load(request.param)


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, load: Load) -> tuple[Any, Any]:
    return load(request.param[0]), load(request.param[1])


def cut(tokenizer: Any, text: str) -> list[bytes]:
    assume("▁" not in text)  # which SentencePiece reads as a space
    assume(not any(token in text for token in tokenizer.all_special_tokens))
    return plain_cut(tokenizer, text)


def plain_cut(tokenizer: Any, text: str) -> list[bytes]:
    return token_bytes(tokenizer, tokenizer(text, add_special_tokens=False).input_ids)


def members(pieces: list[bytes], chunks: list[int]) -> list[bytes]:
    """The bytes of each chunk; chunks must be consecutive, in order and without a gap."""
    inside = [(chunk, piece) for chunk, piece in zip(chunks, pieces, strict=True) if chunk >= 0]
    groups = [(chunk, b"".join(piece for _, piece in group)) for chunk, group in groupby(inside, key=lambda x: x[0])]
    assert [chunk for chunk, _ in groups] == list(range(len(groups)))
    return [joined for _, joined in groups]


def ends(pieces: list[bytes]) -> set[int]:
    return set(accumulate(map(len, pieces))) - {0}


@given(text=texts)
@example(text="")
@example(text=" ")
@example(text="  two before")
@few
def test_the_pieces_join_to_the_text(tokenizer: Any, text: str) -> None:
    pieces = cut(tokenizer, text)
    assert b"".join(pieces) == text.encode()
    framed = tokenizer(text).input_ids
    assert b"".join(token_bytes(tokenizer, framed)) == text.encode()
    ended = token_bytes(tokenizer, [*framed, tokenizer.eos_token_id])
    assert ended[-1] == b""
    assert b"".join(ended) == text.encode()


@given(prompt=texts, response=texts)
@few
def test_the_pieces_of_a_response_are_those_it_has_behind_its_prompt(
    tokenizer: Any, prompt: str, response: str
) -> None:
    whole = cut(tokenizer, prompt + response)
    ids = tokenizer(prompt + response, add_special_tokens=False).input_ids
    for start in range(1, len(ids)):
        assert token_bytes(tokenizer, ids[start:], starts_text=False) == whole[start:]


@given(text=texts)
@example(text="")
@few
def test_chunks_divide_a_text_alike_and_as_finely_as_can_be(pair: tuple[Any, Any], text: str) -> None:
    first, second = (cut(tokenizer, text) for tokenizer in pair)
    ours, theirs = aligned_chunks(first, second)
    assert members(first, ours) == members(second, theirs)
    assert b"".join(members(first, ours)) == text.encode()
    assert ends(members(first, ours)) == ends(first) & ends(second)
    assert all((chunk < 0) == (not piece) for chunk, piece in zip(ours, first, strict=True))
    assert aligned_chunks(second, first) == (theirs, ours)


@given(text=texts)
@few
def test_a_tokenizer_with_itself_has_one_chunk_per_token(tokenizer: Any, text: str) -> None:
    pieces = cut(tokenizer, text)
    ours, theirs = aligned_chunks(pieces, pieces)
    assert ours == theirs
    assert [chunk for chunk in ours if chunk >= 0] == list(range(sum(bool(piece) for piece in pieces)))
    assert ours.count(-1) == pieces.count(b"")


@given(first=cut_in_bytes, second=cut_in_bytes, at=st.integers(0, 30), tail=cut_in_bytes)
@few
def test_any_two_sequences_agree_up_to_where_they_differ(
    first: list[bytes], second: list[bytes], at: int, tail: list[bytes]
) -> None:
    """Against the definition; the second is the first cut elsewhere, or something else altogether from some byte on."""
    joined = b"".join(first)
    recut = [joined[a:b] for a, b in zip([0, *sorted(ends(second))], [*sorted(ends(second)), None], strict=True)]
    for other in (second, recut, [joined[:at], *tail]):
        ours, theirs = aligned_chunks(first, other)
        whole = b"".join(other)
        shared = {end for end in ends(first) & ends(other) if joined[:end] == whole[:end]}
        assert ends(members(first, ours)) == shared == ends(members(other, theirs))
        assert members(first, ours) == members(other, theirs)
        for pieces, chunks in ((first, ours), (other, theirs)):
            reached = list(accumulate(map(len, pieces)))
            inside = [bool(piece) and end <= max(shared, default=0) for piece, end in zip(pieces, reached, strict=True)]
            assert [chunk >= 0 for chunk in chunks] == inside
        assert aligned_chunks(other, first) == (theirs, ours)


@pytest.mark.parametrize(
    ("first", "second", "ours", "theirs"),
    [
        ([b"ab", b"c"], [b"a", b"bc"], [0, 0], [0, 0]),
        ([b"a", b"bc", b"d"], [b"a", b"b", b"c", b"d"], [0, 1, 2], [0, 1, 1, 2]),
        ([b"", b"ab", b""], [b"a", b"", b"b"], [-1, 0, -1], [0, -1, 0]),
        ([b"a", b"b", b"c"], [b"a", b"x", b"c"], [0, -1, -1], [0, -1, -1]),
        ([b"a", b"bc"], [b"a", b"bx", b"c"], [0, -1], [0, -1, -1]),
        ([b"a", b"b", b"c"], [b"a", b"b"], [0, 1, -1], [0, 1]),
        ([b"a", b"bc"], [b"a", b"b"], [0, -1], [0, -1]),
        ([b" a"], [b"a"], [-1], [-1]),
        ([b"a", b"a"], [b"aa", b"a"], [0, 0], [0, -1]),
        ([], [b"a"], [], [-1]),
        ([b""], [], [-1], []),
    ],
)
def test_chunks_by_hand(first: list[bytes], second: list[bytes], ours: list[int], theirs: list[int]) -> None:
    assert aligned_chunks(first, second) == (ours, theirs)


def test_each_byte_has_its_token(tokenizer: Any) -> None:
    """No byte is taken for another: the tokens of single bytes cover all 256, whichever way the vocabulary spells."""
    spelt = token_bytes(tokenizer, sorted(tokenizer.get_vocab().values()), starts_text=False)
    assert {piece for piece in spelt if len(piece) == 1} == {bytes([byte]) for byte in range(256)}


def test_real_tokens_by_hand(load: Load) -> None:
    gpt2, mistral = load("gpt2"), load("mistral")
    assert plain_cut(gpt2, " hi é") == [b" hi", b" \xc3\xa9"]
    assert plain_cut(mistral, "hello") == [b"hell", b"o"]
    assert plain_cut(mistral, " hello") == [b"", b" hell", b"o"]
    assert plain_cut(mistral, "a\n\x00") == [b"a", b"\n", b"\x00"]


def test_the_space_before_a_text_is_taken_off_once_and_only_there(load: Load) -> None:
    mistral = load("mistral")
    hello = mistral("hello", add_special_tokens=False).input_ids
    assert token_bytes(mistral, hello) == [b"hell", b"o"]
    assert token_bytes(mistral, [*hello, *hello]) == [b"hell", b"o", b" hell", b"o"]
    assert token_bytes(mistral, [mistral.bos_token_id, *hello]) == [b"", b"hell", b"o"]
    assert token_bytes(mistral, hello, starts_text=False) == [b" hell", b"o"]
    # this tokenizer begins anew behind a special token in the text
    assert b"".join(plain_cut(mistral, "a <s> b")) == b"a  b"


def test_added_tokens_stand_for_their_text(data_dir: Path) -> None:
    own = tiny.tokenizer()
    own.add_tokens(["<é tool>"])
    text = "a <é tool>b"
    assert token_bytes(own, own(text).input_ids)[-2:] == ["<é tool>".encode(), b"b"]
    assert token_bytes(own, [own.eos_token_id]) == [b""]
    mistral = real(data_dir, "mistral")  # not the one that all share
    mistral.add_tokens([AddedToken("<raw>", normalized=False), AddedToken("<normal>", normalized=True)])
    for text in ("a <raw> b", "<raw>b", "a <normal> b", "<normal> b", "a<raw><raw> b"):
        ids = mistral(text, add_special_tokens=False).input_ids
        assert max(ids) >= 32_000
        assert b"".join(token_bytes(mistral, ids)) == text.encode()


def sentencepiece(scheme: str, *, fallback: bool = True) -> PreTrainedTokenizerFast:
    """Letters and bytes, with the space put in front by a pre-tokenizer, as newer files of LLaMA have it."""
    vocab = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b"]
    ids = {token: at for at, token in enumerate(vocab)}
    raw = Tokenizer(models.BPE(ids, [], unk_token="<unk>", byte_fallback=fallback))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(back if fallback else [decoders.Metaspace(prepend_scheme=scheme)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_space_put_in_front_by_a_pre_tokenizer(scheme: str) -> None:
    tokenizer = sentencepiece(scheme)
    for text in ("ab", "a b", "a\n", "é", "", "b  a"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert b"".join(token_bytes(tokenizer, ids)) == text.encode()
        assert b"".join(token_bytes(tokenizer, [tokenizer.bos_token_id, *ids])) == text.encode()
    assert b"".join(plain_cut(tokenizer, "a b<s>a")) == b"a ba"
    # "always" takes a space that is there for its own, and nobody can tell the two apart
    assert b"".join(plain_cut(tokenizer, "a b<s> a")) == (b"a ba" if scheme == "always" else b"a b a")


def test_without_byte_fallback_a_byte_token_is_its_letters() -> None:
    tokenizer = sentencepiece("never", fallback=False)
    assert token_bytes(tokenizer, [2 + 0x41]) == [b"<0x41>"]
    assert token_bytes(sentencepiece("never"), [2 + 0x41]) == [b"A"]


def test_byte_level_with_a_space_put_in_front() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for text in ("The goat", "\nThe", "é", ""):
        ids = tokenizer(text).input_ids
        assert b"".join(token_bytes(tokenizer, ids)) == text.encode()


def broken(change: str) -> Any:
    """The tiny tokenizer, made into a kind that cannot be read."""
    tokenizer = tiny.tokenizer()
    raw = tokenizer.backend_tokenizer
    if change == "word pieces":
        wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        wordpiece.decoder = decoders.WordPiece()
        return PreTrainedTokenizerFast(tokenizer_object=wordpiece)
    if change == "word ends":
        raw.model = models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>")
    if change == "other decoder":
        raw.decoder = decoders.BPEDecoder()
    if change == "no decoder":
        raw.decoder = decoders.Sequence([])
    if change == "other space":
        raw.decoder = decoders.Sequence([decoders.Replace("_", " "), decoders.Fuse()])
    if change == "strips more":
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 1)])
    if change == "no spaces":
        raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@pytest.mark.parametrize(
    "change",
    ["word pieces", "word ends", "other decoder", "no decoder", "other space", "strips more", "no spaces"],
)
def test_other_kinds_of_tokenizers_are_refused(change: str) -> None:
    with pytest.raises(TeacherError, match="which bytes") as refused:
        token_bytes(broken(change), [1])
    assert refused.value.fix


def test_a_python_tokenizer_is_refused() -> None:
    with pytest.raises(TeacherError, match="not one of the tokenizers library"):
        token_bytes(object(), [1])


@pytest.mark.parametrize("token_id", [-100, -1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(token_id: int) -> None:
    with pytest.raises(TeacherError, match=f"id {token_id} is not") as refused:
        token_bytes(tiny.tokenizer(), [5, token_id])
    assert refused.value.fix


def test_a_token_outside_the_alphabet_of_bytes_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.model = models.BPE({"a": 0, "東": 1}, [])
    with pytest.raises(TeacherError, match="stands for no byte"):
        token_bytes(tokenizer, [1])


def test_the_text_is_that_of_the_normalizer() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert b"".join(token_bytes(tokenizer, tokenizer("e\u0301").input_ids)) == "é".encode()
