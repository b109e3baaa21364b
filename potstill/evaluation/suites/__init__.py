"""The suites by name. Each is a data set, asked in one way; the settings that its figures depend on stand here."""

from __future__ import annotations

from potstill.evaluation.suites.classification import Classification
from potstill.evaluation.suites.instruction import Instruction
from potstill.evaluation.suites.language import Language
from potstill.evaluation.suites.maths import Maths
from potstill.evaluation.suites.suite import Settings, Suite
from potstill.evaluation.suites.summaries import Summaries

# MiniLLM's evaluation: 512 tokens in all, five seeds at temperature 1, no six tokens in a row twice.
MINILLM = Settings(max_prompt_tokens=256, max_new_tokens=256, no_repeat_ngram=6, seeds=(10, 20, 30, 40, 50))
LABEL = Settings(max_new_tokens=16, frame="{prompt}\n\nAnswer with one of the options.\nAnswer:")
CHOICE = Settings(max_new_tokens=16, frame="{prompt}\nAnswer with one of the choices.\nAnswer:")
PROBLEM = Settings(max_new_tokens=96, frame="{prompt}\nEnd with the number that is the answer.\nAnswer:")
NEWS = Settings(max_prompt_tokens=896, max_new_tokens=128)

_ALL = (
    Suite("dolly", "dolly", "valid", Instruction(), MINILLM, "500 instructions, some with a context"),
    Suite("self_inst", "self_inst", "valid", Instruction(), MINILLM, "242 instructions written by experts"),
    Suite("vicuna", "vicuna", "valid", Instruction(), MINILLM, "80 open questions"),
    Suite(
        "sinst", "sinst", "valid", Instruction(), MINILLM, "Super-NaturalInstructions, answers of 11 tokens and more"
    ),
    Suite("anli_r1", "anli", "dev_r1", Classification(), LABEL, "inference, round 1"),
    Suite("anli_r2", "anli", "dev_r2", Classification(), LABEL, "inference, round 2"),
    Suite("anli_r3", "anli", "dev_r3", Classification(), LABEL, "inference, round 3"),
    Suite("esnli", "esnli", "test", Classification(), LABEL, "inference on captions"),
    Suite("cqa", "cqa", "test", Classification(), CHOICE, "common sense, one of five"),
    Suite("svamp", "svamp", "test", Maths(), PROBLEM, "word problems of primary school"),
    Suite("gsm8k", "gsm8k", "test", Maths(), PROBLEM, "word problems of several steps"),
    Suite("cnn_dailymail", "cnn_dailymail", "test", Summaries(), NEWS, "news articles"),
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _ALL}
GROUPS: dict[str, tuple[str, ...]] = {
    "minillm": ("dolly", "self_inst", "vicuna", "sinst"),
    "anli": ("anli_r1", "anli_r2", "anli_r3"),
}
PLAIN_TEXT = Suite("plain_text", "plain_text", "", Language(), Settings(max_prompt_tokens=512), "documents of a file")

__all__ = ["GROUPS", "PLAIN_TEXT", "SUITES", "Settings", "Suite"]
