"""A row as the model sees it."""

from __future__ import annotations

from potstill.data.examples import Example, Tokenised
from potstill.data.inspect import Piece, pieces
from potstill.data.tokenise import tokenise
from tests import tiny

TOKENIZER = tiny.tokenizer()


def row(prompt: str, response: str, most: int = 100) -> Tokenised:
    (found,) = tokenise(
        [Example(prompt, response, "x")], TOKENIZER, template="none", max_prompt_tokens=100, max_response_tokens=most
    )
    assert isinstance(found, Tokenised)
    return found


def test_the_response_and_its_end_are_scored_and_the_end_is_special() -> None:
    assert list(pieces(row("Who ate it?", " A goat."), TOKENIZER)) == [
        Piece("Who ate it?", scored=False, special=False),
        Piece(" A goat.", scored=True, special=False),
        Piece("<end>", scored=True, special=True),
    ]


def test_a_response_that_was_cut_has_no_end() -> None:
    found = list(pieces(row("Who ate it?", " A goat ate the hat.", most=3), TOKENIZER))
    assert [piece.special for piece in found] == [False, False]
    assert not found[1].text.endswith("hat.")


def test_every_token_is_in_exactly_one_piece() -> None:
    whole = row("The sky is blue <end> still.", " Écrivez « à ».")
    assert "".join(p.text for p in pieces(whole, TOKENIZER)) == TOKENIZER.decode(
        [*whole.prompt_ids, *whole.response_ids], clean_up_tokenization_spaces=False
    )
    assert [p.special for p in pieces(whole, TOKENIZER)] == [False, True, False, False, True]
