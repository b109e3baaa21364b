"""What every mapping of a recipe is made of."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(strict=True, ge=1)]
Index = Annotated[int, Field(strict=True, ge=0)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Between = Annotated[float, Field(strict=True, gt=0, lt=1)]


class Section(BaseModel):
    """One mapping of a recipe.

    ``shorthand`` is the key a bare value stands for: ``teacher: x`` is ``teacher.model: x``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    shorthand: ClassVar[str | None] = None
    one_of: ClassVar[tuple[str, ...]] = ()  # keys of which exactly one is set; setting one unsets the others


def named(value: Any) -> Any:
    """``forward_kl`` is short for ``{name: forward_kl}``."""
    return {"name": value} if isinstance(value, str) else value
