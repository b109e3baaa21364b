"""CNN/DailyMail csv as prompts and responses. A long article loses its end; a summary never loses anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from potstill.data.examples import Example, Tokenised
from potstill.data.reader import Row, read_rows
from potstill.data.tokenise import Template, choose_template, tokenise
from potstill.recipe import Data
from potstill.run import write_text

PROMPT = "summarize: {article}\n"  # the study wrote " </s> ", as plain text, where the line ends here
SHORTEST_PROMPT = 64  # tokens; a summary that leaves less of the window to its article is left out
UNCUT = 1_000_000  # tokens


@dataclass(frozen=True)
class Article:
    """A row of the csv."""

    id: str
    text: str
    highlights: str


def read_articles(file: Path, most: int | None = None) -> tuple[list[Article], int]:
    """The first articles of a csv with ``id``, ``article`` and ``highlights``, and how many rows were passed over.

    Raises: DataError for a file that cannot be read as a whole.
    """
    rows = list(read_rows(file))
    read = [row.values for row in rows if isinstance(row, Row)]
    usable = [Article(row["id"], row["article"], row["highlights"]) for row in read if all(_texts(row))]
    return usable[:most], len(rows) - len(usable)


def write_rows(
    articles: Sequence[Article], tokenizer: Any, data: Data, file: Path, *, room_for_summary: bool
) -> dict[str, int]:
    """Write articles as rows of prompts and responses, and count what was done to them.

    Args:
        articles: of one split.
        tokenizer: of the student, and so of the teacher.
        data: whose limits the rows are cut to; ``max_response_tokens`` and SHORTEST_PROMPT make up the window.
        file: a .jsonl file.
        room_for_summary: cut an article further where its own summary would not fit into the window. Not for the
            test split, whose summaries nobody has seen when the article is cut.
    Returns: ``articles``, ``cut_articles``, ``left_out`` (no room for the article, or no summary), ``median_tokens``
        and ``longest_tokens`` of articles before cutting.
    """
    template = choose_template(data, tokenizer)
    rows, lengths, num_cut = [], [], 0
    for article, ids in zip(articles, _uncut(articles, tokenizer, template), strict=True):
        if not isinstance(ids, Tokenised):
            continue
        room = window_of(data) - (len(ids.response_ids) if room_for_summary else 0)
        if room < SHORTEST_PROMPT:
            continue
        room = min(room, data.max_prompt_tokens)
        lengths.append(len(ids.prompt_ids))
        text = article.text if len(ids.prompt_ids) <= room else shortened(article.text, tokenizer, template, room)
        num_cut += text != article.text
        rows.append({"id": article.id, "prompt": PROMPT.format(article=text), "response": article.highlights})
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    return {
        "articles": len(rows),
        "cut_articles": num_cut,
        "left_out": len(articles) - len(rows),
        "median_tokens": round(median(lengths)),
        "longest_tokens": max(lengths),
    }


def window_of(data: Data) -> int:
    """Tokens that a prompt and its summary may have together."""
    return data.max_response_tokens + SHORTEST_PROMPT


def told(counts: dict[str, int]) -> str:
    """Counts of ``write_rows`` in a line."""
    return (
        "{articles} articles, {cut_articles} of them cut, {left_out} left out, {unusable} rows unusable; "
        "uncut prompts: median {median_tokens} tokens, longest {longest_tokens}"
    ).format(**counts)


def shortened(article: str, tokenizer: Any, template: Template, limit: int) -> str:
    """The first words of an article that is too long, as many as keep its prompt within ``limit`` tokens."""
    overhead = _num_prompt_tokens("", tokenizer, template)
    offsets = tokenizer(article, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for kept in _beginnings(article, [end for _, end in offsets[: max(limit - overhead, 0)]]):
        if _num_prompt_tokens(kept, tokenizer, template) <= limit:
            return kept
    return ""


def suggested_max_new_tokens(lengths: Sequence[int], share: float = 0.95) -> int:
    """The length that ``share`` of the summaries do not exceed, the end token counted (nearest rank)."""
    return sorted(lengths)[math.ceil(share * len(lengths)) - 1]


def _texts(row: dict[str, Any]) -> Iterator[bool]:
    return (isinstance(row.get(key), str) and bool(row[key].strip()) for key in ("id", "article", "highlights"))


def _uncut(articles: Sequence[Article], tokenizer: Any, template: Template) -> list[Any]:
    examples = [Example(PROMPT.format(article=a.text), a.highlights, a.id) for a in articles]
    return tokenise(examples, tokenizer, template=template, max_prompt_tokens=UNCUT, max_response_tokens=UNCUT)


def _num_prompt_tokens(article: str, tokenizer: Any, template: Template) -> int:
    (ids,) = _uncut([Article("", article, "-")], tokenizer, template)
    return len(ids.prompt_ids)


def _beginnings(article: str, ends: Sequence[int]) -> Iterator[str]:
    """The article up to each of ``ends``, the last one first, without the part of a word that is left there."""
    for end in reversed(ends):
        whole = end == len(article) or article[end].isspace()
        yield (article[:end] if whole else article[:end].rpartition(" ")[0]).rstrip()
