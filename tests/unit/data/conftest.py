"""Small tokenizers trained here, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Below is an instruction that describes a task. Write a response.\n\n### Instruction:\nName a bird.\n",
    "The heron stands in the shallow water and waits for a small fish.",
    "user: what is the colour of copper? assistant: copper is the colour of a new pot.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools\nhere') }}{% endif %}"
    "{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


def make_tokenizer(frame: str | None = None, *, eos: str = "</s>", chat: bool = False, **names: str) -> Any:
    """A byte-level BPE tokenizer; pad is eos, as in many real ones.

    Args:
        frame: what is put around a text: ``<s> $A`` adds a beginning.
        eos: the end of a sequence. names: further special tokens by name.
        chat: with a chat template, which refuses tool messages.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    if frame:
        special = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
        core.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, pad_token=eos, bos_token="<s>", **names)
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Adds ``<s>`` at the start; has no chat template."""
    return make_tokenizer("<s> $A")


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    return make_tokenizer("<s> $A", chat=True)


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a .jsonl file: each an object, a line of text, or bytes."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        file = tmp_path / name
        file.write_bytes(b"".join(_line(row) + b"\n" for row in rows))
        return file

    return write


def _line(row: Any) -> bytes:
    if isinstance(row, bytes):
        return row
    return (row if isinstance(row, str) else json.dumps(row)).encode()


def good_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Usable rows without ids."""
    return [{"prompt": f"Say {n}.", "response": f"The number {n}."} for n in range(start, start + count)]
