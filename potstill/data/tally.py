"""What became of the rows of a split, counted as they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from potstill.data.encoding import Encoded
from potstill.data.examples import Tokenised
from potstill.data.tokenise import Skip
from potstill.errors import DataError

SKIPS: dict[Skip, str] = {
    "long_prompt": "skipped_long_prompts",
    "empty_prompt": "skipped_empty_prompts",
    "empty_response": "skipped_empty_responses",
    "inner_end": "skipped_inner_ends",
}


@dataclass
class Tally:
    """Rows by what became of them: rows = skipped + used, and those shortened or truncated are among the used.

    ``shortened_tokens`` are those that shortened prompts lost.
    """

    skipped: Counter[Skip] = field(default_factory=Counter)
    used: int = 0
    shortened_prompts: int = 0
    shortened_tokens: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0

    @classmethod
    def of_all(cls, tallies: Iterable[Tally]) -> Tally:
        whole = cls()
        for one in tallies:
            for name, value in vars(one).items():
                setattr(whole, name, getattr(whole, name) + value)
        return whole

    def add(self, row: Encoded) -> None:
        if not isinstance(row.ids, Tokenised):
            self.skipped[row.ids] += 1
            return
        self.add_used(len(row.ids.prompt_ids), len(row.ids.response_ids), truncated=row.ids.truncated)
        self.shortened_prompts += row.left_out > 0
        self.shortened_tokens += row.left_out

    def add_used(self, prompt_tokens: int, response_tokens: int, *, truncated: bool) -> None:
        self.used += 1
        self.truncated += truncated
        self.prompt_tokens += prompt_tokens
        self.response_tokens += response_tokens

    @property
    def rows(self) -> int:
        return self.used + self.skipped.total()

    def skips(self) -> dict[str, int]:
        return {key: self.skipped[skip] for skip, key in SKIPS.items()}

    def sizes(self) -> dict[str, Any]:
        return {
            "used": self.used,
            "shortened_prompts": self.shortened_prompts,
            "shortened_tokens": self.shortened_tokens,
            "truncated_responses": self.truncated,
            "truncated_share": round(self.truncated / self.used, 6),
            "prompt_tokens": self.prompt_tokens,
            "response_tokens": self.response_tokens,
        }

    def check(self, name: str, max_prompt_tokens: int) -> None:
        """Refuse a split of which nothing is left. Raises: DataError."""
        if self.used:
            return
        if not self.skipped:
            raise DataError(f"there are no {name} rows", "add rows")
        (skip, count), *_ = self.skipped.most_common(1)
        why = {
            "long_prompt": f"prompts are longer than data.max_prompt_tokens={max_prompt_tokens}",
            "empty_prompt": "prompts have no tokens",
            "empty_response": "responses have no tokens",
            "inner_end": "responses hold the end of a sequence before their end",
        }[skip]
        fix = "raise data.max_prompt_tokens, or shorten the prompts" if skip == "long_prompt" else "mend the rows"
        raise DataError(f"no {name} rows are left: {count} of {self.skipped.total()} {why}", fix)


def totals(
    files: dict[str, dict[str, Any]],
    tallies: dict[str, Tally],
    *,
    apart: dict[str, int],
    overlap: dict[str, int | float],
) -> dict[str, Any]:
    """The counts of data.json; every row is counted once: rows = quarantined + skipped + used + those set apart.

    Args:
        files: what is known of each, ``rows`` and ``quarantined`` among it. tallies: of each split.
        apart: rows that are in no split, by why.
    """
    whole = Tally.of_all(tallies.values())
    return {
        "files": files,
        "rows": sum(file["rows"] for file in files.values()),
        "quarantined": sum(file["quarantined"] for file in files.values()),
        **whole.skips(),
        **whole.sizes(),
        **apart,
        "splits": {name: {"rows": one.rows} | one.skips() | one.sizes() for name, one in tallies.items()},
        "overlap": overlap,
    }
