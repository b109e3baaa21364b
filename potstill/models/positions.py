"""How long a text a model sees, known from its config alone."""

from __future__ import annotations

from typing import Any

from potstill.errors import ModelError
from potstill.models.layout import is_encoder_decoder


def positions_of(config: Any) -> int | None:
    """How many tokens a model sees, by the config of its text; None where it sets no limit.

    An encoder-decoder model has as many for the source and as many again for the target. T5 has none.
    """
    found = getattr(config, "max_position_embeddings", None)
    return int(found) if found and found > 0 else None


def check_positions(config: Any, num_prompt_tokens: int, num_response_tokens: int, of: str) -> None:
    """Refuse text that is longer than a model sees, be its positions embedded or merely never learned.

    Args:
        config: of the model's text.
        num_prompt_tokens, num_response_tokens: how long the text is. of: what it is, for the message.
    Raises: ModelError.
    """
    limit, pair = positions_of(config), is_encoder_decoder(config)
    needed = max(num_prompt_tokens, num_response_tokens) if pair else num_prompt_tokens + num_response_tokens
    if limit is None or needed <= limit:
        return
    fix = "lower data.max_prompt_tokens or data.max_response_tokens, or max_new_tokens of what writes"
    if not pair:
        raise ModelError(f"the model has {limit} positions, and {of} has {needed} tokens", fix)
    raise ModelError(
        f"the model has {limit} positions for a source and {limit} for a target, and {of} has {num_prompt_tokens} and "
        f"{num_response_tokens} tokens",
        fix,
    )


def room_for_prompt(config: Any, wanted: int, max_new_tokens: int) -> int:
    """Tokens a prompt may have beside a response of ``max_new_tokens``: below 1 where there is no room for both."""
    limit = positions_of(config)
    if limit is None:
        return wanted
    if is_encoder_decoder(config):
        return min(wanted, limit) if max_new_tokens <= limit else 0
    return min(wanted, limit - max_new_tokens)
