"""Token ids: the prompt as inference has it, the response as it continues, one end of sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.examples import Example, Tokenised, Unusable
from potstill.data.tokenise import check_example, choose_template, prompt_text, tokenise
from potstill.errors import DataError
from potstill.recipe import Data
from tests.unit.data.conftest import make_tokenizer

LOOSE = {"max_prompt_tokens": 10_000, "max_response_tokens": 10_000}
FRAMES = {"bare": None, "bos": "<s> $A", "bos and eos": "<s> $A </s>", "eos": "$A </s>", "one for both": "</s> $A </s>"}


@pytest.fixture(scope="module", params=FRAMES, ids=lambda name: name.replace(" ", "_"))
def any_tokenizer(request) -> Any:
    return make_tokenizer(FRAMES[request.param])


def one(tokenizer: Any, prompt: str, response: str, template: str = "none", **limits: int) -> Any:
    (made,) = tokenise([Example(prompt, response, "id")], tokenizer, template=template, **(LOOSE | limits))
    return made


def text_of(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# --- the end of a sequence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("response", ["The heron.", "The heron.</s>", " ", "\n\n", "</s"])
def test_the_end_stands_exactly_once_at_the_end(any_tokenizer, response):
    made = one(any_tokenizer, "Name a bird.\n", response)
    eos = any_tokenizer.eos_token_id
    assert any_tokenizer.pad_token_id == eos
    assert made.response_ids[-1] == eos
    assert made.response_ids.count(eos) == 1
    assert not made.truncated


def test_a_prompt_never_ends_in_what_the_tokenizer_adds(any_tokenizer):
    made = one(any_tokenizer, "Name a bird.\n", "The heron.")
    framed = any_tokenizer("Name a bird.\n")["input_ids"]
    assert made.prompt_ids[-1] != any_tokenizer.eos_token_id
    assert list(made.prompt_ids) == framed[: len(made.prompt_ids)]  # but begins with what it adds
    assert text_of(any_tokenizer, made.prompt_ids) == "Name a bird.\n"


def test_an_empty_prompt_is_the_beginning_even_where_it_is_also_the_end():
    tokenizer = make_tokenizer("</s> $A </s>")
    assert one(tokenizer, "", "Once").prompt_ids == (tokenizer.eos_token_id,)


def test_an_empty_prompt_without_a_beginning_is_left_out():
    assert one(make_tokenizer(), "", "Once") == "empty_prompt"


def test_the_end_counts_within_the_limit(tokenizer):
    """A response of n tokens: room for n + 1 keeps its end, room for n keeps all tokens but no end."""
    whole = one(tokenizer, "p\n", "The heron waits.").response_ids
    count = len(whole) - 1
    assert one(tokenizer, "p\n", "The heron waits.", max_response_tokens=count + 1).response_ids == whole
    for limit in (count, count - 1, 1):
        cut = one(tokenizer, "p\n", "The heron waits.", max_response_tokens=limit)
        assert cut.response_ids == whole[:limit]
        assert cut.truncated
        assert tokenizer.eos_token_id not in cut.response_ids
        assert cut.response == "The heron waits."


def test_an_end_in_the_text_counts_the_same(tokenizer):
    plain, marked = one(tokenizer, "p\n", "The heron."), one(tokenizer, "p\n", "The heron.</s>")
    assert plain.response_ids == marked.response_ids
    limit = len(plain.response_ids)
    assert not one(tokenizer, "p\n", "The heron.</s>", max_response_tokens=limit).truncated


@pytest.mark.parametrize("response", ["a</s>b", "</s>a", "a</s></s>", "a</s>\n"])
def test_an_end_before_the_end_is_refused(tokenizer, response):
    with pytest.raises(Unusable, match="before its end"):
        check_example(Example("p", response, "id"), tokenizer, "none")


def test_a_response_that_is_only_the_end_is_empty(tokenizer):
    with pytest.raises(Unusable, match="empty"):
        check_example(Example("p", "</s>", "id"), tokenizer, "none")


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_prompt_over_the_limit_is_left_out_whole(tokenizer):
    length = len(one(tokenizer, "Name a small bird.\n", "r").prompt_ids)
    assert isinstance(one(tokenizer, "Name a small bird.\n", "r", max_prompt_tokens=length), Tokenised)
    assert one(tokenizer, "Name a small bird.\n", "r", max_prompt_tokens=length - 1) == "long_prompt"


def test_a_response_that_the_tokenizer_does_not_know_is_left_out():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "</s>": 2}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    assert one(tokenizer, "a", "zzz") == "empty_response"
    assert one(tokenizer, "a", "zbz").response_ids == (1, 2)


def test_outcomes_stand_in_the_order_of_the_examples(tokenizer):
    examples = [Example(f"{'long ' * n}\n", f"r{n}", str(n)) for n in (1, 50, 2, 60, 3)]
    made = tokenise(examples, tokenizer, template="none", max_prompt_tokens=40, max_response_tokens=40)
    assert [row if isinstance(row, str) else row.example_id for row in made] == [
        "1",
        "long_prompt",
        "2",
        "long_prompt",
        "3",
    ]
    assert made[4].response_ids == one(tokenizer, examples[4].prompt, "r3").response_ids


def test_no_examples_no_tokens(tokenizer):
    assert tokenise([], tokenizer, template="none", **LOOSE) == []


# --- the boundary -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_no_prompt_moves_and_no_character_is_lost_or_added(prompt, response):
    """On a byte-level tokenizer, whatever the text: ids are the prompt's own, and both texts come back."""
    tokenizer = BOS
    made = one(tokenizer, prompt, response)
    assert list(made.prompt_ids) == tokenizer(prompt)["input_ids"]
    assert text_of(tokenizer, made.prompt_ids) == prompt
    assert text_of(tokenizer, made.prompt_ids + made.response_ids) == prompt + response


BOS = make_tokenizer("<s> $A")


def test_where_the_tokenizer_would_merge_over_the_boundary_the_response_stands_alone(tokenizer):
    prompt, response = "The her", "on waits."
    joint, alone = tokenizer(prompt + response)["input_ids"], tokenizer(prompt)["input_ids"]
    assert joint[: len(alone)] != alone  # the case this test is about
    made = one(tokenizer, prompt, response)
    assert list(made.prompt_ids) == alone
    assert list(made.response_ids[:-1]) == tokenizer(response, add_special_tokens=False)["input_ids"]


REAL = {"gpt2": "tokenizers/gpt2", "mistral": "tokenizers/mistral", "stories260k": "stories260k"}


@pytest.fixture(scope="module", params=REAL)
def real_tokenizer(request, data_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data_dir / REAL[request.param])


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("### Instruction:\nName a bird.\n\n### Response:\n", "The heron."),
        ("### Instruction:\nName a bird.\n\n### Response:\n", " A heron,\n\nand more."),
        ("Question: what is 2 + 2?\nAnswer:", " 4"),
        ("Once upon a time", ", there was a girl called Lily."),
        ("Überraschung: 日本\n", "Größe é ñ 🙂"),
    ],
)
def test_the_boundary_is_exact_on_real_tokenizers(real_tokenizer, prompt, response):
    """The ids are those of the whole text, cut where the prompt that inference feeds ends, and then the end."""
    made = one(real_tokenizer, prompt, response)
    assert list(made.prompt_ids) == real_tokenizer(prompt)["input_ids"]
    assert made.response_ids[-1] == real_tokenizer.eos_token_id
    assert list(made.prompt_ids + made.response_ids[:-1]) == real_tokenizer(prompt + response)["input_ids"]
    assert text_of(real_tokenizer, made.prompt_ids + made.response_ids) == prompt + response


@pytest.mark.parametrize(("prompt", "response"), [("Hel", "lo world"), ("Answer: ", "four"), ("Hello", "world")])
def test_a_prompt_that_would_merge_stays_as_inference_has_it_on_real_tokenizers(real_tokenizer, prompt, response):
    made = one(real_tokenizer, prompt, response)
    assert list(made.prompt_ids) == real_tokenizer(prompt)["input_ids"]
    assert text_of(real_tokenizer, made.response_ids).strip() == response


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_chat_prompt_is_what_the_template_says_and_nothing_else(chat_tokenizer):
    made = one(chat_tokenizer, "Name a bird.", "The heron.", template="chat")
    expected = chat_tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name a bird."}], add_generation_prompt=True, return_dict=False
    )
    assert list(made.prompt_ids) == expected  # no second <s> of the tokenizer's own
    assert chat_tokenizer.decode(made.prompt_ids) == "<s>user\nName a bird.</s>\n<s>assistant\n"
    assert chat_tokenizer.decode(made.response_ids) == "The heron.</s>"
    assert made.prompt == "Name a bird."


def test_messages_go_through_the_template_one_by_one(chat_tokenizer):
    example = Example("as read", "r", "id", messages=(("system", "be short"), ("user", "hi")))
    assert prompt_text(example, chat_tokenizer, "chat") == "<s>system\nbe short</s>\n<s>user\nhi</s>\n<s>assistant\n"


def test_messages_that_the_template_refuses_make_a_bad_row_on_one_line(chat_tokenizer):
    example = Example("as read", "r", "id", messages=(("tool", "42"),))
    with pytest.raises(Unusable, match="the chat template refuses the messages: no tools here"):
        check_example(example, chat_tokenizer, "chat")


@pytest.mark.parametrize(
    ("config", "has_template", "chosen"),
    [
        ({}, True, "chat"),
        ({}, False, "none"),
        ({"format": "dolly"}, True, "none"),
        ({"format": "dolly", "template": "chat"}, True, "chat"),
        ({"format": "chat"}, True, "chat"),
        ({"template": "none"}, True, "none"),
        ({"template": "chat"}, True, "chat"),
    ],
)
def test_the_template_that_is_chosen(config, has_template, chosen, tokenizer, chat_tokenizer):
    assert choose_template(Data(**config), chat_tokenizer if has_template else tokenizer) == chosen


@pytest.mark.parametrize(
    ("config", "has_template", "said"),
    [
        ({"template": "chat"}, False, "data.template=chat needs a chat template, and the tokenizer has none"),
        ({"format": "chat"}, False, "data.format=chat needs a chat template, and the tokenizer has none"),
        (
            {"format": "chat", "template": "none"},
            True,
            "data.format=chat needs a chat template, and data.template is none",
        ),
    ],
)
def test_templates_that_cannot_be_are_refused_with_a_way_out(config, has_template, said, tokenizer, chat_tokenizer):
    with pytest.raises(DataError) as caught:
        choose_template(Data(**config), chat_tokenizer if has_template else tokenizer)
    assert caught.value.cause == said
    assert caught.value.fix


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        choose_template(Data(), tokenizer)
