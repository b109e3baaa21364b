"""Which text of a row is asked for, and with which words before its prompt."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator

from potstill.recipe.section import Section

# response: the row's answer. The two with a rationale hold both: "neutral: Nobody says so." (MiniLLM_Seq2Seq), or
# "Nobody says so. So the answer is neutral", as chains of thought end.
Target: TypeAlias = Literal["response", "label_then_rationale", "rationale_then_label"]


class PrefixSection(Section):
    """Words before a prompt, which say what is asked of it; ``chat`` in their place behind a chat template."""

    shorthand: ClassVar[str | None] = "text"
    text: str = ""
    chat: str | None = None  # text, where unset


def prefix_of(value: Any) -> Any:
    """``"predict: "`` is short for ``{text: "predict: "}``."""
    return {"text": value} if isinstance(value, str) else value


Prefix = Annotated[PrefixSection, BeforeValidator(prefix_of)]
