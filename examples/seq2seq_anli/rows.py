"""Everything that is trained and measured on: texts to copy, animals, test rows of ANLI; and a small T5's shape.

No test row enters: tokenizer and copied texts are of TinyStories' train file, ANLI's dev rows and the animals' train
rows; what is measured is of TinyStories' valid file and ANLI's test.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from small import ROUNDS, TEACHER_LAYERS, VOCAB_SIZE, WIDTH, Sizes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config

from potstill.data.catalogue import Item, load
from potstill.run import write_text

sys.path.append(str(Path(__file__).resolve().parents[1] / "step_by_step"))
from animals import balanced, sentences

LONGEST = 12  # words of a text that is copied


def write_all(data: Path, sizes: Sizes) -> None:
    """Write ``data/`` and ``t5/`` into the current folder.

    Args:
        data: the folder with ``tinystories/`` and ``anli/``.
        sizes: how many rows of each kind.
    """
    stories, fresh = (data / "tinystories" / f"{split}.jsonl" for split in ("train", "valid"))
    dev = [item for name in ROUNDS for item in _anli(data, f"{name}_dev")]
    _write("copy_train", _copies([*sentences(stories), *_hypotheses(dev)], sizes.copies[0]))
    _write("copy_test", _copies([*sentences(fresh)], sizes.copies[1]))
    animals = balanced(stories, sizes.animals[0])
    for at, name in enumerate(ROUNDS):
        _write(f"animals_{name}", animals[at :: len(ROUNDS)])
    _write("animals_test", ({**row, "options": ["yes", "no"]} for row in balanced(fresh, sizes.animals[1])))
    test = random.Random(0).sample(_anli(data, "r1_test"), sizes.anli_test)
    _write("anli_r1_test", ({**_row(item), "options": list(item.options)} for item in test))
    answered = (_as_read(row) for row in [*animals, *map(_row, dev)])
    write_model(Path("t5"), [*_stories(stories), *answered])


# --- Rows -------------------------------------------------------------------------------------------------------------


def _copies(texts: Sequence[str], count: int) -> Iterator[dict[str, str]]:
    """Pieces of 1 to 12 words, each its own answer. The short ones are where copying begins to be learned."""
    drawn = random.Random(0)
    pieces = dict.fromkeys(_piece(text.split(), drawn) for text in drawn.sample(texts, len(texts)))
    return ({"prompt": piece, "response": piece} for piece in list(pieces)[:count])


def _piece(words: Sequence[str], drawn: random.Random) -> str:
    length = min(len(words), drawn.randint(1, LONGEST))
    start = drawn.randint(0, len(words) - length)
    return " ".join(words[start : start + length])


def _hypotheses(items: Iterable[Item]) -> Iterator[str]:
    """What stands in the last line of an item's own words."""
    return ((item.content or "").rsplit("\n", 1)[-1] for item in items)


def _anli(data: Path, split: str) -> tuple[Item, ...]:
    return load("anli", split, folder=data / "anli").items


def _row(item: Item) -> dict[str, Any]:
    return {"id": item.id, "prompt": item.prompt, "response": item.references[0], "rationale": item.rationale}


def _stories(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def _write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    write_text(Path("data", f"{name}.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))


# --- The model --------------------------------------------------------------------------------------------------------


def write_model(folder: Path, texts: Iterable[str]) -> None:
    """A T5's config and a tokenizer for it, without weights: the run draws them by its seed."""
    begins: dict[str, Any] = {"decoder_start_token_id": 0}  # which T5Config takes, and its signature does not name
    config = T5Config(
        vocab_size=VOCAB_SIZE, d_model=WIDTH, d_kv=WIDTH // 4, d_ff=2 * WIDTH, num_heads=4, num_layers=TEACHER_LAYERS,
        num_decoder_layers=TEACHER_LAYERS, dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
        architectures=["T5ForConditionalGeneration"], **begins,
    )  # fmt: skip
    config.save_pretrained(folder)
    tokenizer(texts).save_pretrained(folder)


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts its end behind a source, as T5's does."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")


def _as_read(row: dict[str, Any]) -> str:
    """Prompt and answer, the answer at a line's beginning: so its label is one token, as it is where it is written."""
    return f"{row['prompt']}\n{row['response']}: {row['rationale']}"
