"""From text to token ids. The prompt's ids are exactly those that inference feeds; the response continues them.

For an encoder-decoder model, whose tokenizer is marked as one of pairs, nothing is continued: the prompt is a source
text and the response a target text, each encoded by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, TypeAlias

from jinja2 import TemplateError

from potstill.data.examples import Example, Tokenised, Unusable
from potstill.errors import DataError
from potstill.recipe import Data
from potstill.types import PAIR_MARK

Template: TypeAlias = Literal["chat", "none"]
Ids: TypeAlias = list[int]
PLAIN = {"padding": False, "truncation": False, "verbose": False}
# Why an example is left out: its prompt is over the limit (a cut one would not be the same question); it has no prompt
# token, so that no state predicts the first response token; it has no response token; the end of a sequence stands
# inside its response, where the tokenizer makes it of other letters than its own, so that the text did not show it.
Skip: TypeAlias = Literal["long_prompt", "empty_prompt", "empty_response", "inner_end"]


def encodes_pairs(tokenizer: Any) -> bool:
    """Whether sources and targets are encoded apart: the tokenizer was loaded with an encoder-decoder model."""
    return bool(getattr(tokenizer, PAIR_MARK, False))


def frames_texts_alike(tokenizer: Any) -> bool:
    """Whether a prompt and a response have the same tokens for a causal model and for an encoder-decoder one: nothing
    is added at the end of a source or at the start of a target.
    """
    return _num_added(tokenizer, "text")[1] == 0 and _num_added(tokenizer, "text_target")[0] == 0


def choose_template(config: Data, tokenizer: Any) -> Template:
    """The template that ``config`` asks for, checked against what the tokenizer has.

    Auto is the chat template where there is one, but not for dolly, whose frame is a template already, and not for an
    encoder-decoder model, which no chat goes on with.

    Raises: DataError where the tokenizer has no chat template and one is needed, or no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token, so a student could not learn where to stop",
            "set eos_token in the model's tokenizer_config.json, or choose another model",
        )
    has_one = bool(tokenizer.chat_template)
    continued = has_one and not encodes_pairs(tokenizer)
    wanted = config.template
    if wanted == "auto":
        wanted = "chat" if config.format == "chat" or (continued and config.format != "dolly") else "none"
    if config.format == "chat" and wanted == "none":
        raise DataError("data.format=chat needs a chat template, and data.template is none", "set data.template=auto")
    if wanted == "chat" and not has_one:
        asking = "data.format=chat" if config.format == "chat" else "data.template=chat"
        raise DataError(
            f"{asking} needs a chat template, and the tokenizer has none",
            "choose an instruct model, or use data.format=prompt_response with data.template=none",
        )
    return wanted


def prompt_text(example: Example, tokenizer: Any, template: Template) -> str:
    """The prompt as the tokenizer is given it. Raises: Unusable where the chat template refuses the messages."""
    if template == "none":
        return example.prompt
    pairs = example.messages or (("user", example.prompt),)
    messages = [{"role": role, "content": content} for role, content in pairs]
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except (TemplateError, TypeError, ValueError) as error:
        raise Unusable(f"the chat template refuses the messages: {' '.join(str(error).split())[:120]}") from error


def num_prompt_tokens(example: Example, tokenizer: Any, template: Template) -> int:
    """Tokens of the prompt as inference feeds it."""
    text = prompt_text(example, tokenizer, template)
    special = template == "none"
    (ids,) = _sources(tokenizer, [text], special) if encodes_pairs(tokenizer) else _encode(tokenizer, [text], special)
    return len(ids)


def check_example(example: Example, tokenizer: Any, template: Template) -> Example:
    """The example, if it can become tokens that mean what the text says.

    Raises: Unusable where the chat template refuses it, or the end-of-sequence token stands inside the response:
        generation would stop there, so the rest could never be said.
    """
    prompt_text(example, tokenizer, template)
    said = example.response.removesuffix(tokenizer.eos_token)
    if tokenizer.eos_token in said:
        raise Unusable(f"the response holds {tokenizer.eos_token!r}, the end of a sequence, before its end")
    if not said.strip():
        raise Unusable("the response is empty")
    return example


def tokenise(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    template: Template,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> list[Tokenised | Skip]:
    """Token ids of each example, or why it is left out; in order, one for one.

    With the chat template the template's own text is all there is; without it the tokenizer adds its special tokens at
    the start as it always does, but none at the end. A source text gets those at the end too, and a target those at the
    start and one end.

    Args:
        max_prompt_tokens: an example with a longer prompt is left out whole.
        max_response_tokens: the end-of-sequence token counts. A response of exactly this many tokens keeps them all,
            loses only its end, and is ``truncated``.
    """
    prompts, responses = _prompts_and_responses(examples, tokenizer, template)
    return [
        _one(example, prompt, response, tokenizer.eos_token_id, max_prompt_tokens, max_response_tokens)
        for example, prompt, response in zip(examples, prompts, responses, strict=True)
    ]


def _one(
    example: Example, prompt: Ids, response: Ids, eos_id: int, max_prompt_tokens: int, max_response_tokens: int
) -> Tokenised | Skip:
    if not prompt:
        return "empty_prompt"
    if len(prompt) > max_prompt_tokens:
        return "long_prompt"
    if not response:
        return "empty_response"
    if eos_id in response[:-1]:
        return "inner_end"
    ended = response if response[-1] == eos_id else [*response, eos_id]
    return Tokenised(
        example_id=example.id,
        prompt_ids=tuple(prompt),
        response_ids=tuple(ended[:max_response_tokens]),
        prompt=example.prompt,
        response=example.response,
        truncated=len(ended) > max_response_tokens,
        group=example.group,
    )


def _prompts_and_responses(
    examples: Sequence[Example], tokenizer: Any, template: Template
) -> tuple[list[Ids], list[Ids]]:
    """Ids of the prompts, and of the responses as they continue them.

    The joint text is encoded once more, because a tokenizer may see a word's start differently after a prompt. Where it
    would merge across the boundary the prompt stays as inference has it, and the response is encoded by itself.
    """
    texts = [prompt_text(example, tokenizer, template) for example in examples]
    special = template == "none"
    if encodes_pairs(tokenizer):
        return _sources(tokenizer, texts, special), _targets(tokenizer, [example.response for example in examples])
    prompts = _encode(tokenizer, texts, special)
    joints = _encode(tokenizer, [text + e.response for text, e in zip(texts, examples, strict=True)], special)
    fits = [joint[: len(prompt)] == prompt for prompt, joint in zip(prompts, joints, strict=True)]
    alone = iter(_encode(tokenizer, [e.response for e, fit in zip(examples, fits, strict=True) if not fit], False))
    cut = [joint[len(prompt) :] for prompt, joint in zip(prompts, joints, strict=True)]
    return prompts, [ids if fit else next(alone) for ids, fit in zip(cut, fits, strict=True)]


def _encode(tokenizer: Any, texts: Sequence[str], special: bool) -> list[Ids]:
    """Ids of each text; with ``special``, what the tokenizer adds at the start but nothing it adds at the end."""
    rows = _sources(tokenizer, texts, special)
    added = _num_added(tokenizer, "text")[1] if special and texts else 0
    return [row[: len(row) - added] for row in rows]


def _sources(tokenizer: Any, texts: Sequence[str], special: bool) -> list[Ids]:
    """Ids of each text; with ``special``, with all that the tokenizer adds."""
    rows: list[Ids] = tokenizer(list(texts), add_special_tokens=special, **PLAIN)["input_ids"] if texts else []
    return rows


def _targets(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    """Ids of each text as a target, with what the tokenizer adds at the start, and no end; none for an empty text."""
    if not texts:
        return []
    start, end = _num_added(tokenizer, "text_target")
    rows = tokenizer(text_target=list(texts), **PLAIN)["input_ids"]
    return [row[: len(row) - end] if len(row) > start + end else [] for row in rows]


def _num_added(tokenizer: Any, kind: Literal["text", "text_target"]) -> tuple[int, int]:
    """How many tokens the tokenizer puts before and after a text. By position: an id may be the beginning's and the
    end's.
    """
    # Not a text of no tokens: it would not show what comes before it and what after.
    known = chain.from_iterable(some() for some in (lambda: ("a", "0"), lambda: tokenizer.get_vocab()))
    text = next((text for text in known if tokenizer(text, add_special_tokens=False)["input_ids"]), "a")
    bare = tokenizer(**{kind: text}, add_special_tokens=False)["input_ids"]
    framed = tokenizer(**{kind: text}, add_special_tokens=True)["input_ids"]
    starts = (start for start in range(len(framed) - len(bare) + 1) if framed[start : start + len(bare)] == bare)
    before = next(starts, len(framed) - len(bare))
    return before, len(framed) - before - len(bare)
