"""What libraries are kept from saying: bars of their own among ours, and warnings of what is as it should be."""

from __future__ import annotations

import logging

# A T5 of version 1.1 has a head of its own, and every config says in the library's form that it has not.
KNOWN = "The tied weights mapping and config for this model specifies to tie shared.weight to lm_head.weight"


def quiet() -> None:
    """From now on, in this process. Called before a model is read or written."""
    from transformers.utils import logging as theirs

    theirs.disable_progress_bar()
    logger = logging.getLogger("transformers.modeling_utils")
    if _is_news not in logger.filters:
        logger.addFilter(_is_news)
    # peft imports bitsandbytes where it is installed, which misses an optional package whether it is used or not.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(KNOWN)
