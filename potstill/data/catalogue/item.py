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
        input_span: (start, end) of the part of the prompt that is cut first where it is too long; None where the item
            does not tell it from its instruction, and empty where it has none.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    options: tuple[str, ...] = ()
    answer: int | None = None
    group: str = ""
    rationale: str | None = None
    content: str | None = None
    input_span: tuple[int, int] | None = None

    def example(self) -> Example:
        """The item as a row to train on: its prompt with its first reference.

        What may be cut of it is its input, where it does not tell that its content, and nothing where it has neither:
        the middle of a bare prompt may be the question, or an option.

        Raises: ValueError where it has no reference.
        """
        if not self.references:
            raise ValueError(f"{self.id} has no reference to train on")
        start = self.prompt.find(self.content) if self.content else -1
        own = (start, start + len(self.content or "")) if start >= 0 else (0, 0)
        span = own if self.input_span is None else self.input_span
        return Example(
            self.prompt,
            self.references[0],
            self.id,
            content=self.content,
            input_span=span,
            rationale=self.rationale,
        )
