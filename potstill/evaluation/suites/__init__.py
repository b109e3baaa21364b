"""The suites by name. Each is a data set, asked in one way; the settings that its figures depend on stand here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from potstill.data.catalogue import is_there
from potstill.errors import ConfigError, nearest
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
    Suite("uinst", "Unnatural Instructions, longer answers", Instruction(), MINILLM, "uinst", ("valid",)),
    Suite("anli", "adversarial inference, each of three rounds", Classification(), LABEL, "anli", ROUNDS),
    Suite("anli_r1", "adversarial inference, the first round", Classification(), LABEL, "anli", ROUNDS[:1]),
    Suite("esnli", "inference on captions", Classification(), LABEL, "esnli", ("test",)),
    Suite("cqa", "common sense, one answer of five", Classification(), CHOICE, "cqa", ("test",)),
    Suite("svamp", "word problems of one or two steps", Maths(), PROBLEM, "svamp", ("test",)),
    Suite("gsm8k", "word problems of several steps", Maths(), PROBLEM, "gsm8k", ("test",)),
    Suite("cnn_dailymail", "news articles in a few sentences", Summaries(), NEWS, "cnn_dailymail", ("test",)),
    Suite("xsum", "news articles in one sentence", Summaries(), NEWS, "xsum", ("test",)),
    Suite("samsum", "chats in a few sentences", Summaries(), NEWS, "samsum", ("test",)),
    # Of a file that is named beside it:
    Suite("instruction", "rows with a prompt and a response", Instruction(), Settings(seeds=(1,))),
    Suite("classification", "rows with a prompt, options and a response", Classification(), Settings()),
    Suite("maths", "rows with a prompt and a number or an equation", Maths(), Settings()),
    Suite("summaries", "rows with a prompt and a summary", Summaries(), NEWS),
    Suite("plain_text", "documents", Language(), Settings()),
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _ALL}
GROUPS: dict[str, tuple[str, ...]] = {"minillm": ("dolly", "self_inst", "vicuna", "sinst", "uinst")}


def chosen(names: Sequence[str]) -> list[Suite]:
    """The suites of these names, each once; of a group those whose data set is here, and the others are said.

    Raises: ConfigError for a name that is none, or a group of which no data set is here.
    """
    known = [*SUITES, *GROUPS]
    if (unknown := next((name for name in names if name not in known), None)) is not None:
        fix = f"{nearest(unknown, known)}It is one of {', '.join(known)}"
        raise ConfigError(f"there is no suite {unknown!r}", fix)
    found = (member for name in names for member in (_members(name) if name in GROUPS else (name,)))
    return [SUITES[name] for name in dict.fromkeys(found)]


def _members(group: str) -> Iterator[str]:
    here = [name for name in GROUPS[group] if all(is_there(SUITES[name].dataset or "", s) for s in SUITES[name].splits)]
    if not here:
        cause = f"none of the data sets of {group} is here: {', '.join(GROUPS[group])}"
        raise ConfigError(cause, f"`potstill data card {GROUPS[group][0]} valid` says where to download the first")
    if absent := [name for name in GROUPS[group] if name not in here]:
        print(f"{group}: without {', '.join(absent)}, whose data is not here", file=sys.stderr, flush=True)
    yield from here


__all__ = ["GROUPS", "SUITES", "Settings", "Suite", "chosen"]
