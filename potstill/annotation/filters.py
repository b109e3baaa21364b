"""Filters by name: each takes an annotation and gives it back, changed perhaps, or the reason why it is left out.

Source: the first five do what Klinge's MiniLLM_Seq2Seq does to its reasons for ANLI; the others are for what makes
rationales teach something else than they seem to: labels that are wrong, and rationales that give the label away.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import TypeAlias

from potstill.annotation.reading import Annotation, agrees
from potstill.annotation.task import Task
from potstill.errors import ConfigError, nearest

BLACKLIST = ("nowiki", "nli", "[i]")  # Klinge's
PREFIXES = ("output", "conclusion", "reason", "reasoning", "rationale", "explanation", "answer", "response")
MOST_IN_A_ROW, LONGEST_PHRASE = 5, 8  # times that words may stand in a row; words of what is looked for
LEAST_CHARS = 5
# A full stop ends a sentence before a space or the end, and a quote may close behind it; Chinese needs no space.
_END = re.compile(
    r"[.!?\u2026\u061f\u06d4\u0964]+[\"')\]\u2019\u201d\u00bb]*(?=\s|$)|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d]*"
)
_PREFIX = re.compile(rf"\s*[*_#\s]*(?:{'|'.join(PREFIXES)})\s*[*_]*\s*[:\uff1a][*_]*\s*", re.IGNORECASE)

Filter: TypeAlias = Callable[[Annotation], Annotation | str]


@dataclass(frozen=True)
class Step:
    """A filter with its name."""

    name: str
    apply: Filter


@dataclass
class Sieved:
    """An annotation behind the filters, and before them. ``dropped_by``: the filter that left it out, ``why``: its
    reason."""

    annotation: Annotation
    dropped_by: str | None = None
    why: str | None = None
    changed_by: list[str] = field(default_factory=list)
    as_read: Annotation = field(init=False)

    def __post_init__(self) -> None:
        self.as_read = self.annotation


def sieved(annotation: Annotation, steps: Sequence[Step]) -> Sieved:
    """The annotation as the steps leave it, one after another; it stays as it was before the one that left it out.

    What a person wrote passes as it is, and what could not be read is left out as ``unread`` before all steps.
    """
    found = Sieved(annotation)
    if annotation.origin != "teacher":
        return found
    if annotation.unread is not None:
        return Sieved(annotation, "unread", annotation.unread)
    for step in steps:
        after = step.apply(found.annotation)
        if isinstance(after, str):
            found.dropped_by, found.why = step.name, after
            return found
        if after != found.annotation:
            found.changed_by.append(step.name)
            found.annotation = after
    return found


# --- the filters ------------------------------------------------------------------------------------------------------


def strip_prefix(one: Annotation) -> Annotation | str:
    """Takes away "Output:", "Conclusion:" and the like, also several, from the beginning."""
    words = one.words or ""
    while found := _PREFIX.match(words):
        words = words[found.end() :]
    return _kept(one, words)


def incomplete_last_sentence(one: Annotation) -> Annotation | str:
    """Cuts the last sentence off where the text was cut within it; what the writer ended itself stays."""
    words = (one.words or "").rstrip()
    if one.words is None or one.finished:
        return one
    ends = list(_END.finditer(words))
    return _kept(one, words[: ends[-1].end()] if ends else "")


def blacklist(words: Sequence[str] = BLACKLIST) -> Filter:
    """Leaves out a text with one of these words, whole and in any case."""

    def apply(one: Annotation) -> Annotation | str:
        found = next((word for word in words if has_word(one.words or "", word)), None)
        return one if found is None else f"it has {found!r}"

    return apply


def repetition(one: Annotation) -> Annotation | str:
    """Leaves out a text with a phrase of one to eight words more than five times in a row, or with a sentence twice."""
    text = _folded(one.words or "")
    if (phrase := _in_a_row(re.findall(r"\w+", text))) is not None:
        return f"{phrase[:40]!r} stands more than {MOST_IN_A_ROW} times in a row"
    sentences = [sentence for sentence in (" ".join(part.split()) for part in _END.split(text)) if sentence]
    twice = next((sentence for sentence in sentences if sentences.count(sentence) > 1), None)
    return one if twice is None else f"it says {twice[:40]!r} twice"


def _in_a_row(words: Sequence[str]) -> str | None:
    """The first phrase that is repeated too often at once: a run of words that are those of one phrase before."""
    for size in range(1, LONGEST_PHRASE + 1):
        run = 0
        for at in range(size, len(words)):
            run = run + 1 if words[at] == words[at - size] else 0
            if run >= MOST_IN_A_ROW * size:
                return " ".join(words[at - size + 1 : at + 1])
    return None


def too_short(one: Annotation) -> Annotation | str:
    """Leaves out a text of fewer than five characters."""
    short = one.words is not None and len(unicodedata.normalize("NFC", one.words.strip())) < LEAST_CHARS
    return f"fewer than {LEAST_CHARS} characters" if short else one


def label_disagreement(one: Annotation) -> Annotation | str:
    """Leaves out an annotation whose label is not the gold one, where both are there."""
    if one.label is None or one.gold is None or agrees(one.label, one.gold):
        return one
    return f"it says {one.label[:40]!r}, and the gold label is {one.gold[:40]!r}"


def leaks_label(one: Annotation) -> Annotation | str:
    """Leaves out a rationale in which its own label, or else the gold one, stands as whole words."""
    label = one.label or one.gold
    if one.rationale is None or not label or not has_word(one.rationale, label):
        return one
    return f"it has the label {label[:40]!r}"


def unfinished(one: Annotation) -> Annotation | str:
    """Leaves out what was cut at the greatest length, before its writer ended it."""
    return one if one.finished else "it was cut"


def _kept(one: Annotation, words: str) -> Annotation | str:
    words = words.strip()
    if one.words is None or words == one.words.strip():
        return one
    return one.with_words(words) if words else "nothing is left"


def has_word(text: str, word: str) -> bool:
    """Whether a text has a word (or several) that is not part of a longer one, in any case and any Unicode form."""
    text, word = _folded(text), _folded(word.strip())
    if not word:
        return False
    before, after = ("(?<!\\w)" if _bounded(word[0]) else ""), ("(?!\\w)" if _bounded(word[-1]) else "")
    return re.search(f"{before}{re.escape(word)}{after}", text) is not None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _bounded(character: str) -> bool:
    """Whether words of this script stand apart: those of Chinese and Japanese do not."""
    return (character.isalnum() or character == "_") and unicodedata.east_asian_width(character) not in ("W", "F")


def versions(one: Annotation) -> Iterator[Annotation]:
    """An annotation as it was read, then as any filters leave its words: as a review may have shown it."""
    for number in range(len(CHANGING) + 1):
        for names in permutations(CHANGING, number):
            yield sieved(one, [Step(name, FILTERS[name]) for name in names]).annotation


# --- choosing ---------------------------------------------------------------------------------------------------------

FILTERS: Mapping[str, Filter] = {
    "strip_prefix": strip_prefix,
    "incomplete_last_sentence": incomplete_last_sentence,
    "blacklist": blacklist(),
    "repetition": repetition,
    "too_short": too_short,
    "label_disagreement": label_disagreement,
    "leaks_label": leaks_label,
    "unfinished": unfinished,
}
OF_WORDS = ("strip_prefix", "incomplete_last_sentence", "blacklist", "repetition", "too_short")
DEFAULT: Mapping[str, tuple[str, ...]] = {
    "label": (),
    "rationale": OF_WORDS,
    "rationale_and_label": OF_WORDS,
    "response": ("unfinished", "repetition"),
}
CHANGING = ("strip_prefix", "incomplete_last_sentence")  # the others keep an annotation as it is, or leave it out
NEEDS_LABEL = ("label_disagreement",)
NEEDS_RATIONALE = ("leaks_label",)
NEEDS_WORDS = (*OF_WORDS, "leaks_label", "unfinished")


def steps_of(names: Sequence[str] | None, task: Task, words: Sequence[str] | None = None) -> tuple[Step, ...]:
    """The filters of these names in their order; those that suit what is wanted where None.

    Args:
        words: of the blacklist, in place of the usual ones.
    Raises: ConfigError for a name that is none, stands twice, or can find nothing in what is wanted.
    """
    chosen = DEFAULT[task.want] if names is None else tuple(names)
    for at, name in enumerate(chosen):
        if name not in FILTERS:
            fix = f"{nearest(name, FILTERS)}It is one of {', '.join(FILTERS)}"
            raise ConfigError(f"there is no filter {name!r}", fix)
        if name in chosen[:at]:
            raise ConfigError(f"--filters names {name} twice", "name it once")
        _refuse_useless(name, task)
    if words is not None and "blacklist" not in chosen:
        raise ConfigError("--blacklist gives words, and --filters has no blacklist", "add blacklist to --filters")
    own = {"blacklist": blacklist(words)} if words is not None else {}
    return tuple(Step(name, own.get(name, FILTERS[name])) for name in chosen)


def _refuse_useless(name: str, task: Task) -> None:
    lacks = {
        "a label": name in NEEDS_LABEL and not task.has_label,
        "a rationale": name in NEEDS_RATIONALE and task.want not in ("rationale", "rationale_and_label"),
        "words": name in NEEDS_WORDS and task.want == "label",
    }
    if what := next((what for what, missing in lacks.items() if missing), None):
        raise ConfigError(f"filter {name} looks at {what}, and --want {task.want} has none", "leave the filter out")
