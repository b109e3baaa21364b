"""Plain text as blocks: which tokens, where documents end, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.data.plain_text import plain_text_blocks
from potstill.errors import DataError
from tests import tiny

TOKENIZER = tiny.tokenizer()
DOCUMENTS = ["The sky is blue.", "  A goat ate the hat.  ", "Écrivez « à » l'aube."]


def stream() -> list[int]:
    """All documents, each ended."""
    return [token for text in DOCUMENTS for token in [*TOKENIZER(text.strip())["input_ids"], TOKENIZER.eos_token_id]]


def lines_of_text(folder: Path) -> Path:
    file = folder / "plain.txt"
    file.write_text("\n\n".join(DOCUMENTS) + "\n   \n", encoding="utf-8")
    return file


def rows_of_text(folder: Path) -> Path:
    file = folder / "plain.jsonl"
    rows = [{"text": text, "other": 1} for text in [*DOCUMENTS, "  "]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("write", [lines_of_text, rows_of_text])
@pytest.mark.parametrize("size", [2, 7, 16])
def test_blocks_are_the_text_in_order_and_only_the_first_token_of_each_is_not_predicted(
    tmp_path: Path, write: object, size: int
) -> None:
    file = write(tmp_path)  # type: ignore[operator]
    found = plain_text_blocks(str(file), TOKENIZER, size)
    joined = [token for row in found for token in (*row.prompt_ids, *row.response_ids)]
    assert joined == stream()[: len(joined)]
    assert 0 <= len(stream()) - len(joined) < size
    assert {(len(row.prompt_ids), len(row.response_ids)) for row in found} == {(1, size - 1)}
    assert [row.example_id for row in found] == [f"{file.name}, block {at}" for at in range(1, len(found) + 1)]
    assert joined.count(TOKENIZER.eos_token_id) == stream()[: len(joined)].count(TOKENIZER.eos_token_id) > 0


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    file = lines_of_text(tmp_path)
    assert len(plain_text_blocks(str(file), TOKENIZER, len(stream()))) == 1
    with pytest.raises(DataError, match=f"{len(stream())} tokens of text, less than one block") as caught:
        plain_text_blocks(str(file), TOKENIZER, len(stream()) + 1)
    assert "lower source.block_tokens" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", b'{"text": "fine"}\n{"prompt": "no"}\n', "field 'text'"),
        ("rows.jsonl", b'{"text": 3}\n', "field 'text'"),
        ("rows.jsonl", b'{"text": "a"\n', "rows.jsonl"),
        ("plain.txt", b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_files_that_are_no_text_are_refused_and_the_place_is_named(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        plain_text_blocks(str(tmp_path / name), TOKENIZER, 2)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=name):
        plain_text_blocks(str(tmp_path / name), TOKENIZER, 8)
