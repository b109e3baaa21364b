"""The suites by name. Each is a data set, asked in one way; the settings that its figures depend on stand here."""

from __future__ import annotations

from potstill.evaluation.suites.classification import Classification
from potstill.evaluation.suites.instruction import Instruction
from potstill.evaluation.suites.language import Language
from potstill.evaluation.suites.maths import Maths
from potstill.evaluation.suites.suite import Settings, Suite
from potstill.evaluation.suites.summaries import Summaries

# MiniLLM's: 512 tokens in all, five seeds at temperature 1, no six tokens in a row twice, Alpaca's frame and no other.
MINILLM = Settings(
    max_prompt_tokens=256, max_new_tokens=256, no_repeat_ngram=6, seeds=(10, 20, 30, 40, 50), template="none"
)
LABEL = Settings(max_new_tokens=16, frame="{prompt}\n\nAnswer with one of the options.\nAnswer:")
CHOICE = Settings(max_new_tokens=16, frame="{prompt}\nAnswer with one of the choices.\nAnswer:")
PROBLEM = Settings(max_new_tokens=96, frame="{prompt}\nEnd with the number that is the answer.\nAnswer:")
NEWS = Settings(max_prompt_tokens=896, max_new_tokens=128)

ROUNDS = ("r1_dev", "r2_dev", "r3_dev")

_ALL = (
    Suite("dolly", "500 instructions, some with a context", Instruction(), MINILLM, "dolly", ("valid",)),
    Suite("self_inst", "242 instructions written by experts", Instruction(), MINILLM, "self_inst", ("valid",)),
    Suite("vicuna", "80 open questions", Instruction(), MINILLM, "vicuna", ("valid",)),
    Suite("sinst", "Super-NaturalInstructions, longer answers", Instruction(), MINILLM, "sinst", ("valid",)),
    Suite("anli", "adversarial inference, each of three rounds", Classification(), LABEL, "anli", ROUNDS),
    Suite("anli_r1", "adversarial inference, the first round", Classification(), LABEL, "anli", ROUNDS[:1]),
    Suite("esnli", "inference on captions", Classification(), LABEL, "esnli", ("test",)),
    Suite("cqa", "common sense, one answer of five", Classification(), CHOICE, "cqa", ("test",)),
    Suite("svamp", "word problems of one or two steps", Maths(), PROBLEM, "svamp", ("test",)),
    Suite("gsm8k", "word problems of several steps", Maths(), PROBLEM, "gsm8k", ("test",)),
    Suite("cnn_dailymail", "news articles in a few sentences", Summaries(), NEWS, "cnn_dailymail", ("test",)),
    # Of a file that is named beside it:
    Suite("instruction", "rows with a prompt and a response", Instruction(), Settings(seeds=(1,))),
    Suite("classification", "rows with a prompt, options and a response", Classification(), Settings()),
    Suite("maths", "rows with a prompt and a number or an equation", Maths(), Settings()),
    Suite("summaries", "rows with a prompt and a summary", Summaries(), NEWS),
    Suite("plain_text", "documents", Language(), Settings()),
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _ALL}
GROUPS: dict[str, tuple[str, ...]] = {"minillm": ("dolly", "self_inst", "vicuna", "sinst")}

__all__ = ["GROUPS", "SUITES", "Settings", "Suite"]
