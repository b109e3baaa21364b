"""The rows of a stage: where they are, what is asked of them, how they are divided and cut."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from potstill.recipe.section import Count, Fraction, Index, Section
from potstill.recipe.views import Prefix, PrefixSection, Target

FieldName: TypeAlias = Literal["prompt", "response", "id", "rationale", "llm_label", "group"]


class Data(Section):
    """Rows of prompts and responses, and how they become tokens."""

    shorthand: ClassVar[str | None] = "path"
    path: str = "starter"  # a .jsonl, .csv or .parquet file, a named split as "cqa:train", a folder of prepared rows or
    # of MiniLLM's .bin/.idx, or "starter": potstill's own
    heldout: str | None = None  # likewise, of its own; where unset, heldout_fraction of the rows is set aside
    format: Literal["prompt_response", "dolly", "chat"] = "prompt_response"
    fields: dict[FieldName, str] = Field(default_factory=dict)  # our name: the file's name
    # Labels and rationales of a teacher: a file of `potstill annotate`, or "palm", the outputs that lie beside a named
    # set in the layout of distilling step-by-step.
    annotations: str | None = None
    labels: Literal["gold", "llm"] = "gold"  # what train rows answer; the other splits always answer gold
    target: Target = "response"  # what is answered: alone, or with the row's rationale
    prefix: Prefix = PrefixSection()
    subsample: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0  # share of the train rows
    subsample_seed: Index = 0  # of which rows; for one seed a smaller share is a part of a larger one
    template: Literal["auto", "chat", "none"] = "auto"  # auto: the tokenizer's chat template where it has one
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05  # for choosing the best checkpoint
    max_heldout: Count = 500  # MiniLLM's Dolly test split has 500
    max_validation: Count = 64
    max_prompt_tokens: Count = 256  # MiniLLM
    max_response_tokens: Count = 256  # MiniLLM: 512 in all
    long_prompts: Literal["skip", "shorten"] = "skip"  # over max_prompt_tokens; skip: MiniLLM. shorten: input's middle
    max_bad_rows: Fraction = 0.01  # above this share of quarantined rows the run stops
