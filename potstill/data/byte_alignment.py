"""Where two tokenizers cut the same text at the same byte: the chunks on which their models can be compared.

Bytes, not characters: a token may hold part of a character, and both tokenizers agree about bytes.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

from potstill.errors import TeacherError

_SPACE = "▁"  # what SentencePiece writes for a space
_BYTE = re.compile("<0x([0-9A-F]{2})>")
# Decoders that, in any order, do no more than turn the space's sign and byte tokens back into text.
_SENTENCEPIECE_DECODERS = {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}


def token_bytes(tokenizer: Any, ids: Sequence[int], *, starts_text: bool = True) -> list[bytes]:
    """The bytes that each token contributes to the text, so that joined they are the text.

    Special tokens contribute none. Neither does the space that some tokenizers put before a text that has none: it is
    taken off the token it went into, which may leave that token empty. Where a tokenizer changes the text (Unicode
    normal form, runs of spaces), the bytes are those of the changed text.

    Args:
        tokenizer: of transformers, backed by the tokenizers library: byte-level BPE, or the SentencePiece kind with or
            without byte fallback.
        ids: of a text, or any that a model made.
        starts_text: whether ids begin a text. A response that continues a prompt does not, and its first space is
            one; better still, give prompt and response together and leave out the prompt's pieces.
    Raises: TeacherError for another kind of tokenizer, or an id it does not have.
    """
    how = _reading(tokenizer)
    added, special = tokenizer.added_tokens_decoder, set(tokenizer.all_special_ids)
    prefixed = starts_text and how.prefix_at_start
    pieces = []
    for token_id, token in zip(ids, _tokens(tokenizer, ids), strict=True):
        is_added = token_id in added
        if token_id in special or (is_added and added[token_id].special):
            piece = b""
        elif is_added and how.byte_level:
            piece = token.encode()  # added tokens stand as they are, outside the alphabet of bytes
        else:
            piece = how.bytes_of(token).removeprefix(b" " if prefixed else b"")
        pieces.append(piece)
        prefixed = is_added and (how.prefix_after(added[token_id]) or (prefixed and not piece))
    return pieces


def aligned_chunks(student_pieces: Sequence[bytes], teacher_pieces: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """The chunk of each token: the finest division of both sequences whose parts end at the same bytes of the text.

    A chunk is one or more whole tokens on each side, with equal bytes. Chunks count from 0 in the order of the text.

    Args:
        student_pieces, teacher_pieces: as token_bytes gives them.
    Returns: for each student token and each teacher token its chunk, or -1 where it is in none: tokens without bytes
        (specials such as the end of the sequence), and all after the last boundary that both share, which is at the
        latest where the texts begin to differ.
    """
    student_ends, teacher_ends = list(accumulate(map(len, student_pieces))), list(accumulate(map(len, teacher_pieces)))
    agreed = _agreed_bytes(b"".join(student_pieces), b"".join(teacher_pieces))
    boundaries = sorted(end for end in {*student_ends} & {*teacher_ends} if 0 < end <= agreed)
    return _chunks(student_pieces, student_ends, boundaries), _chunks(teacher_pieces, teacher_ends, boundaries)


def _chunks(pieces: Sequence[bytes], ends: list[int], boundaries: list[int]) -> list[int]:
    last = boundaries[-1] if boundaries else 0
    return [
        bisect_left(boundaries, end) if piece and end <= last else -1 for piece, end in zip(pieces, ends, strict=True)
    ]


def _agreed_bytes(first: bytes, second: bytes) -> int:
    """How many bytes two texts have in common from their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


@dataclass(frozen=True)
class _Reading:
    """How a tokenizer's tokens spell text, and where it puts a space that the text does not have."""

    byte_level: bool
    byte_fallback: bool = False
    prefix_at_start: bool = False
    prefix_after_raw: bool = False  # after added tokens found before normalisation
    prefix_after_normal: bool = False  # after added tokens found after it

    def prefix_after(self, added_token: Any) -> bool:
        return self.prefix_after_normal if added_token.normalized else self.prefix_after_raw

    def bytes_of(self, token: str) -> bytes:
        if self.byte_level:
            return _from_alphabet(token)
        if self.byte_fallback and (byte := _BYTE.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return token.replace(_SPACE, " ").encode()


def _tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Raises: TeacherError for an id that is not in the vocabulary."""
    tokens = tokenizer.convert_ids_to_tokens([max(token_id, 0) for token_id in ids])
    for token_id, token in zip(ids, tokens, strict=True):
        if token_id < 0 or token is None:
            raise TeacherError(
                f"id {token_id} is not in the tokenizer's vocabulary",
                "use the tokenizer that came with the model, and leave out padding and label ids such as -100",
            )
    return list(tokens)


def _reading(tokenizer: Any) -> _Reading:
    """Raises: TeacherError for a tokenizer that neither of the two ways reads."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unreadable(tokenizer, "it is not one of the tokenizers library")
    if getattr(backend.model, "end_of_word_suffix", None) or getattr(backend.model, "continuing_subword_prefix", None):
        raise _unreadable(tokenizer, "its tokens are marked where a word ends or goes on")
    decoders = list(_parts(backend.decoder))
    kinds = {decoder["type"] for decoder in decoders}
    if kinds == {"ByteLevel"}:
        return _prefixed(backend, byte_level=True, byte_fallback=False)
    if kinds <= _SENTENCEPIECE_DECODERS and any(map(_gives_spaces, decoders)) and all(map(_is_plain, decoders)):
        return _prefixed(backend, byte_level=False, byte_fallback="ByteFallback" in kinds)
    raise _unreadable(tokenizer, f"its decoder is {', '.join(sorted(kinds)) or 'missing'}")


def _prefixed(backend: Any, *, byte_level: bool, byte_fallback: bool) -> _Reading:
    """The reading of a tokenizer, with where it puts a space of its own: told by its normalizer and pre-tokenizer."""
    normal = any(part["type"] == "Prepend" and part["prepend"] in (_SPACE, " ") for part in _parts(backend.normalizer))
    pre = list(_parts(backend.pre_tokenizer))
    schemes = {_scheme(part) for part in pre if part["type"] == "Metaspace"}
    always = "always" in schemes or any(part["type"] == "ByteLevel" and part["add_prefix_space"] for part in pre)
    return _Reading(
        byte_level,
        byte_fallback,
        prefix_at_start=normal or always or "first" in schemes,
        prefix_after_raw=normal or always,
        prefix_after_normal=always,
    )


def _scheme(metaspace: dict[str, Any]) -> str:
    """When it puts a space before text; older files say it with one flag."""
    return str(metaspace.get("prepend_scheme") or ("always" if metaspace.get("add_prefix_space", True) else "never"))


def _gives_spaces(decoder: dict[str, Any]) -> bool:
    return decoder["type"] in ("Replace", "Metaspace")


def _is_plain(decoder: dict[str, Any]) -> bool:
    """Whether a decoder does what its kind does in SentencePiece, and nothing more."""
    if decoder["type"] == "Replace":
        return decoder["pattern"] == {"String": _SPACE} and decoder["content"] == " "
    if decoder["type"] == "Metaspace":
        return decoder["replacement"] == _SPACE
    if decoder["type"] == "Strip":
        return decoder["content"] == " " and decoder["start"] <= 1 and decoder["stop"] == 0
    return True


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """A component of a tokenizer as its settings; a sequence as those of its members."""
    if component is not None:
        yield from _flat(json.loads(component.__getstate__()))


def _flat(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    members = next((settings[name] for name in ("decoders", "normalizers", "pretokenizers") if name in settings), None)
    if members is None:
        yield settings
    for member in members or ():
        yield from _flat(member)


def _from_alphabet(token: str) -> bytes:
    alphabet = _byte_alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError as error:
        raise TeacherError(
            f"token {token!r} holds {error.args[0]!r}, which stands for no byte in byte-level BPE",
            "register it as an added token, or use the tokenizer as it came with the model",
        ) from error


@cache
def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE: itself where it can be seen in Latin-1, else one of
    those from 256 on, in order."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in set(seen)]
    return {chr(byte): byte for byte in seen} | {chr(256 + at): byte for at, byte in enumerate(unseen)}


def _unreadable(tokenizer: Any, why: str) -> TeacherError:
    return TeacherError(
        f"{type(tokenizer).__name__} does not tell which bytes a token stands for: {why}",
        "choose a model with byte-level BPE or a SentencePiece vocabulary, or a teacher that shares the student's "
        "tokenizer",
    )
