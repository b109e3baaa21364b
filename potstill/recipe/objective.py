"""What every objective of a term is."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from potstill.recipe.section import Section

# What an objective is given beside the student's logits: a teacher; the response's own tokens; nothing; the earlier
# tokens of the response and its own; or the logits of the whole response at once, with the embeddings. ``inside``: no
# logits, but what is inside both models.
Reads: TypeAlias = Literal["teacher", "tokens", "student", "earlier_tokens", "response", "inside"]


class ObjectiveSection(Section):
    """An objective by its function's name, or by ``function`` where the recipe's word is another."""

    in_nats: ClassVar[bool] = True  # the unit of its value
    function: ClassVar[str | None] = None
    made_elsewhere: ClassVar[tuple[str, ...]] = ()  # settings that are not the function's
