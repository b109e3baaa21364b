"""One example of a task: what a model is asked, and what a right answer is."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.data.examples import Example


@dataclass(frozen=True)
class Item:
    """One example of a task.

    Args:
        id: the data set's own, or file and line.
        prompt: what is asked, as a person reads it, before any chat template.
        references: acceptable answers. Training takes the first; none where a split keeps its answers back.
        options: what is to be chosen from, in the data set's order; empty where the answer is free.
        answer: the index of the right option; None where there are no options.
        group: the part of the data set, where figures are given by part: a round, a category.
        rationale: why the answer is right, where the data set or another model says so.
        content: the item's own words in the prompt, without a frame that all items share; None where that is all of it.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    options: tuple[str, ...] = ()
    answer: int | None = None
    group: str = ""
    rationale: str | None = None
    content: str | None = None

    def example(self) -> Example:
        """The item as a row to train on: its prompt with its first reference. Raises: ValueError where it has none."""
        if not self.references:
            raise ValueError(f"{self.id} has no reference to train on")
        return Example(self.prompt, self.references[0], self.id, content=self.content)
