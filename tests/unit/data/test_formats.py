"""From rows to examples, in each format, and the reasons of rows that hold none."""

from __future__ import annotations

import json

import pytest

from potstill.data.examples import Unusable
from potstill.data.formats import check_fields, example_of
from potstill.data.reader import Row
from potstill.errors import DataError
from potstill.recipe import Data


def example(values, **config):
    return example_of(Row("rows.jsonl:7", values), Data(**config))


def reason(values, **config):
    with pytest.raises(Unusable) as caught:
        example(values, **config)
    return str(caught.value)


def test_prompt_response_keeps_the_text_as_it_is():
    made = example({"prompt": " p\n", "response": "\tr ", "kind": "extra keys are ignored"})
    assert (made.prompt, made.response) == (" p\n", "\tr ")


def test_the_first_of_several_responses_is_taken_under_any_name():
    assert example({"prompt": "p", "response": ["one", "two"]}).response == "one"
    assert example({"prompt": "p", "answer": ["one", 2]}, fields={"response": "answer"}).response == "one"


def test_an_empty_prompt_is_the_start_of_a_sequence():
    assert example({"prompt": "", "response": "Once"}).prompt == ""


@pytest.mark.parametrize(
    ("values", "id"),
    [
        ({"id": "a-1"}, "a-1"),
        ({"id": 0}, "0"),
        ({}, "rows.jsonl:7"),
        ({"id": None}, "rows.jsonl:7"),
        ({"id": ""}, "rows.jsonl:7"),
    ],
)
def test_an_id_is_the_rows_own_or_its_place(values, id):
    assert example({"prompt": "p", "response": "r"} | values).id == id


def test_fields_are_renamed():
    fields = {"prompt": "question", "response": "answer", "id": "key"}
    made = example({"question": "q", "answer": "a", "key": 3, "prompt": "no"}, fields=fields)
    assert (made.prompt, made.response, made.id) == ("q", "a", "3")
    assert reason({"prompt": "p", "response": "r"}, fields=fields).startswith(
        "missing field 'question' (there are: 'prompt'"
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": "p"}, "missing field 'response' (there are: 'prompt')"),
        ({"response": "r"}, "missing field 'prompt'"),
        ({}, "missing field 'prompt'"),
        ({"prompt": 3, "response": "r"}, "field 'prompt' is int, not text"),
        ({"prompt": "p", "response": None}, "field 'response' is null, not text"),
        ({"prompt": "p", "response": []}, "field 'response' is an empty list"),
        ({"prompt": "p", "response": [3, "r"]}, "field 'response[0]' is int, not text"),
        ({"prompt": "p", "response": [" ", "r"]}, "field 'response[0]' is empty"),
        ({"prompt": ["p"], "response": "r"}, "field 'prompt' is a list, not text"),
        ({"prompt": "p", "response": {"text": "r"}}, "field 'response' is an object, not text"),
        ({"prompt": "p", "response": ""}, "field 'response' is empty"),
        ({"prompt": "p", "response": " \n\t"}, "field 'response' is empty"),
        ({"prompt": "a\0b", "response": "r"}, "field 'prompt' holds a NUL character"),
        ({"prompt": "p", "response": "\ud800"}, "a lone surrogate"),
        ({"id": True, "prompt": "p", "response": "r"}, "field 'id' is true or false, not text"),
        ({"id": 1.5, "prompt": "p", "response": "r"}, "field 'id' is float, not text"),
        ({"id": "a\0", "prompt": "p", "response": "r"}, "field 'id' holds a NUL character"),
    ],
)
def test_reasons_of_prompt_response(values, said):
    assert said in reason(values)


# --- dolly ------------------------------------------------------------------------------------------------------------

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\nName a bird.\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\nName a bird.\n\n### Input:\nIn {lakes}."
    "\n\n### Response:\n"
)


@pytest.mark.parametrize("absent", [{}, {"input": ""}, {"input": None}])
def test_dolly_without_input(absent):
    made = example({"instruction": "Name a bird.", "output": "A heron.", **absent}, format="dolly")
    assert (made.prompt, made.response) == (ALPACA, "A heron.")


def test_dolly_with_input_whose_braces_are_only_text():
    made = example({"instruction": "Name a bird.", "input": "In {lakes}.", "output": "A heron."}, format="dolly")
    assert made.prompt == ALPACA_INPUT
    assert made.own_words == "Name a bird.\nIn {lakes}."


def test_the_first_of_several_outputs_is_the_response():
    assert example({"instruction": "i", "output": ["one", "two"]}, format="dolly").response == "one"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"output": "o"}, "missing field 'instruction'"),
        ({"instruction": "  ", "output": "o"}, "field 'instruction' is empty"),
        ({"instruction": "i"}, "missing field 'output'"),
        ({"instruction": "i", "output": []}, "field 'output' is an empty list"),
        ({"instruction": "i", "output": [3]}, "field 'output[0]' is int, not text"),
        ({"instruction": "i", "output": [" "]}, "field 'output[0]' is empty"),
        ({"instruction": "i", "input": 3, "output": "o"}, "field 'input' is int, not text"),
    ],
)
def test_reasons_of_dolly(values, said):
    assert said in reason(values, format="dolly")


def test_the_frame_is_minillms(data_dir):
    """MiniLLM's processed rows carry the prompt they were trained on: ours is that one, to the letter."""
    for name in ("dolly/dev", "vicuna/valid", "sinst/valid"):
        rows = [json.loads(line) for line in (data_dir / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(rows) >= 80
        assert all(example(row, format="dolly").prompt == row["prompt"] for row in rows)


# --- chat -------------------------------------------------------------------------------------------------------------

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be short"}


def test_the_last_message_is_the_response_and_the_rest_the_prompt():
    made = example({"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]}, format="chat")
    assert made.response == "hello"
    assert made.messages == (("system", "be short"), ("user", "hi"), ("assistant", "hello"), ("user", "hi"))
    assert made.prompt == "system: be short\nuser: hi\nassistant: hello\nuser: hi"
    assert made.own_words == "hi\nhello\nhi"


def test_a_lone_question_reads_as_it_is():
    assert example({"messages": [USER, ANSWER]}, format="chat").prompt == "hi"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "field 'messages' is null, not a list"),
        ("hi", "field 'messages' is text, not a list"),
        ([], "0 messages"),
        ([ANSWER], "1 messages"),
        ([USER, USER], "the last message is the user's"),
        ([USER, "hello"], "field 'messages[1]' is text, not an object"),
        ([{"role": "user"}, ANSWER], "missing field 'messages[0].content'"),
        ([{"role": "user", "content": [{"type": "text"}]}, ANSWER], "field 'messages[0].content' is a list"),
        ([{"role": "bot", "content": "x"}, ANSWER], "field 'messages[0].role' is 'bot'"),
        ([USER, {"role": "assistant", "content": " "}], "the last message is empty"),
    ],
)
def test_reasons_of_chat(messages, said):
    assert said in reason({"messages": messages}, format="chat")


def test_a_chat_without_messages_names_the_fields_there_are():
    assert reason({"conversations": []}, format="chat") == "missing field 'messages' (there are: 'conversations')"


def test_a_renaming_that_means_nothing_is_refused():
    with pytest.raises(DataError, match=r"data.fields.prompt means nothing in format dolly"):
        check_fields(Data(format="dolly", fields={"prompt": "question"}))
    check_fields(Data(format="dolly", fields={"id": "key"}))
    check_fields(Data(fields={"prompt": "question"}))
