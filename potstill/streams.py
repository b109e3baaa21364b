"""Puts together the streams of a stage: where their sequences come from, who is asked about them, their terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from potstill import recipe as schema
from potstill import schedules
from potstill.assembly import Teaching, model_of
from potstill.caching import Caches
from potstill.data.corpus.blocks import CorpusBlocks
from potstill.data.corpus.scatter import scattered
from potstill.data.examples import Tokenised
from potstill.data.order import indices, seed_of
from potstill.data.plain_text import PlainText, StreamedText, plain_text
from potstill.data.prepare import Prepared
from potstill.errors import ConfigError
from potstill.inside import Looking, Terms, places_of, terms_of
from potstill.models.families import Family
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Mixed, Policy, Single, Speculative
from potstill.sampling.vllm import SyncedWriter, VllmWriter, check_syncable
from potstill.sampling.writer import LocalWriter, Writer
from potstill.schedules import DistillmSchedule
from potstill.sources.credit import LogRatioJudge, Total
from potstill.sources.dataset import DatasetSource
from potstill.sources.mixture import MixtureSource, ReplaySource
from potstill.sources.rollout import Judge, RolloutSource
from potstill.sources.source import Source
from potstill.sources.teacher_text import Place, teacher_text
from potstill.sources.text_stream import TextStreamSource
from potstill.teachers.local import LocalTeacher, LookedInto, OncePerBatch, SignalSource
from potstill.teachers.sparse import SparseTeacher
from potstill.training.compiling import can_compile, prepared
from potstill.training.runtime import Runtime
from potstill.training.step import LiveStream
from potstill.types import Tap


@dataclass(frozen=True)
class Parts:
    """What the streams of one training are made of.

    ``plain_text`` is by stream; ``folder`` is the run's, for what the teacher writes. ``asks`` is whom the stream at
    hand asks: one of the stage's teachers, by its name, or its own where None. ``caches`` are the teachers'.
    """

    stage: schema.Stage
    data: Prepared
    plain_text: Mapping[str, PlainText]
    teaching: Teaching | None
    student: Family
    tokenizer: Any
    runtime: Runtime
    folder: Path
    seed: int
    asks: str | None = None
    caches: Caches | None = None
    kept_channels: Sequence[int] | None = None  # of the teacher's, where the student was cut with them
    compiles: bool = False

    @property
    def teacher(self) -> LocalTeacher:
        assert self.teaching is not None  # the schema refuses a stream that needs a teacher where there is none
        return self.teaching.named(self.asks)


def build_terms(parts: Parts) -> list[Terms]:
    """The terms of each stream of the stage. For one that looks inside, layers and channels are chosen now.

    Raises: ConfigError for what cannot meet; ModelError for models whose inside is not known.
    """
    asking = [(spec, replace(parts, asks=spec.teacher)) for spec in parts.stage.streams]
    return [terms_of(spec, partial(_looking, asked)) for spec, asked in asking]


def build_streams(parts: Parts, terms: Sequence[Terms] | None = None) -> list[LiveStream]:
    """Each stream of the stage, ready to be drawn from. Where the teacher's text is asked for it is written now.

    Args:
        terms: of each stream, as ``build_terms`` has made them; they are made now where None.
    """
    built = build_terms(parts) if terms is None else terms
    return [_stream(parts, spec, own) for spec, own in zip(parts.stage.streams, built, strict=True)]


def plain_text_of(stage: schema.Stage, tokenizer: Any) -> dict[str, PlainText]:
    """The plain text of each stream that reads some: blocks, or what they are streamed from.

    Raises: DataError, ConfigError.
    """
    return {
        stream.name: plain_text(source, tokenizer)
        for stream in stage.streams
        if isinstance(source := stream.source, schema.DatasetSource) and source.path is not None
    }


def views_of(stage: schema.Stage) -> dict[str, schema.DatasetSource]:
    """The streams that ask something of the train rows that is not what the stage's data asks."""
    sources = {
        stream.name: stream.source for stream in stage.streams if isinstance(stream.source, schema.DatasetSource)
    }
    plain = {name: source for name, source in sources.items() if source.path is None}
    return {name: source for name, source in plain.items() if source.is_another_view or source.where is not None}


def asked(
    spec: schema.Stream,
    teaching: Teaching | None,
    student: Family,
    seed: int,
    total: Total = list,
    places: Sequence[Tap] = (),
) -> tuple[SignalSource | None, Judge | None]:
    """Who says what the teacher thinks of a batch at each step, and who gives sampled tokens their credit; None where
    a stream does not ask.

    Args:
        spec: the stream.
        teaching: the teachers. student: who is judged.
        seed: of tokens drawn from the teacher.
        total: sums numbers over processes.
        places: where the teacher is looked into.
    Raises: ConfigError for a k above the vocabulary.
    """
    if teaching is None:
        return None, None
    own = teaching.of(spec)
    credited = next((t.objective for t in spec.terms if isinstance(t.objective, schema.PolicyGradient)), None)
    rollout = schema.rollout_of(spec.source)
    again = credited or (rollout and rollout.num_updates_per_batch > 1)
    local = LookedInto(own, places) if places else own
    teacher = OncePerBatch(local) if again else local
    judge = LogRatioJudge(student, teacher, credited, total) if credited else None
    if isinstance(spec.signal, schema.LogitsSignal | schema.HiddenSignal):
        return teacher, judge
    return in_form(spec, teaching, seed), judge


def in_form(spec: schema.Stream, teaching: Teaching, seed: int) -> SignalSource | None:
    """The teacher of a stream as its signal has it; None where nothing is asked of it but credit, or nothing.

    Raises: ConfigError for a k above the vocabulary.
    """
    match spec.signal:
        case schema.LogitsSignal():
            return teaching.of(spec)
        case schema.TopKSignal(k=k) if k > teaching.vocab_size:
            raise ConfigError(f"signal.k is {k} and the vocabulary has {teaching.vocab_size} tokens", "set a smaller k")
        case schema.TopKSignal() | schema.SampledSignal():
            return SparseTeacher(teaching.of(spec), spec.signal, seed)
    return None


def _stream(parts: Parts, spec: schema.Stream, terms: Terms) -> LiveStream:
    parts = replace(parts, asks=spec.teacher)
    teacher, judge = asked(spec, parts.teaching, parts.student, parts.seed, parts.runtime.sum, places_of(terms))
    source = _source(parts, spec, judge)
    if parts.caches and teacher:
        teacher = parts.caches.behind(spec, teacher, rows_of(source))
    if not parts.compiles or not can_compile(terms):
        return LiveStream(spec, source, teacher, terms)
    return LiveStream(spec, source, teacher, terms, *prepared(spec, parts.student.vocab_size, parts.runtime))


def _looking(parts: Parts) -> Looking:
    """What the terms of a stream need that look inside its models."""
    return Looking(
        student=parts.student,
        teacher=parts.teacher.family,
        teacher_name=model_of(parts.stage, parts.stage.all_teachers[parts.asks])[0],
        rows=parts.data.validation,
        kept=parts.kept_channels if parts.asks is None else None,
        tokenizer=parts.tokenizer,
        runtime=parts.runtime,
        folder=parts.folder,
        seed=parts.seed,
    )


def rows_of(source: Source) -> Sequence[Tokenised]:
    """An epoch of the rows that a source comes to again; none where it reads or writes others each time."""
    match source:
        case DatasetSource():
            return source.examples
        case MixtureSource() | ReplaySource():
            return rows_of(source.data)
    return ()


# --- Sources ----------------------------------------------------------------------------------------------------------


def _source(parts: Parts, spec: schema.Stream, judge: Judge | None) -> Source:
    seed = seed_of(parts.seed, spec.name)
    match spec.source:
        case schema.DatasetSource():
            if spec.source.path:
                return _text(parts, parts.plain_text[spec.name], seed)
            return _rows(parts, parts.data.views.get(spec.name, parts.data.train), spec.source.order)
        case schema.RolloutSource(policy=schema.TeacherPolicy()):
            return _teachers_rows(parts, spec.name, spec.source)
        case schema.RolloutSource():
            return _rollout(parts, spec.source, seed, judge)
        case schema.MixtureSource():
            rollout = _mixed_in(parts, spec.name, spec.source.rollout, seed)
            share = schedules.build(spec.source.rollout_share)
            return MixtureSource(_rows(parts, parts.data.train), rollout, share, seed=seed)
        case schema.ReplaySource():
            return _replay(parts, spec.source, seed)


def _rows(parts: Parts, rows: Sequence[Tokenised], order: int = 0) -> DatasetSource:
    seed = seed_of(parts.seed, "order", order) if order else parts.seed
    return DatasetSource(rows, seed=seed, pad_id=parts.tokenizer.eos_token_id)


def _text(parts: Parts, text: PlainText, seed: int) -> Source:
    pad_id = parts.tokenizer.eos_token_id
    if isinstance(text, StreamedText):
        return TextStreamSource(text.name, text.blocks(seed), pad_id=pad_id)
    if isinstance(text, CorpusBlocks):
        return DatasetSource(text, seed=parts.seed, pad_id=pad_id, order=scattered)
    return _rows(parts, text)


def _rollout(parts: Parts, spec: schema.RolloutSource, seed: int, judge: Judge | None = None) -> RolloutSource:
    prompts, dtype = _rows(parts, parts.data.train), parts.runtime.student_dtype
    return RolloutSource(prompts, writer(parts, spec), spec, seed=seed, judge=judge, dtype=dtype)


def _mixed_in(parts: Parts, name: str, spec: schema.RolloutSource, seed: int) -> Source:
    """The other part of a mixture: the student's rollouts, or the teacher's text (GKD with seq_kd in TRL)."""
    if spec.policy.name == "teacher":
        return _teachers_rows(parts, name, spec)
    return _rollout(parts, spec, seed)


def _replay(parts: Parts, spec: schema.ReplaySource, seed: int) -> ReplaySource:
    capacity = spec.capacity // parts.runtime.world_size
    schedule = DistillmSchedule(
        start=spec.student_share, step=spec.step, tolerance=spec.tolerance if spec.adaptive else math.inf
    )
    data = _rows(parts, parts.data.train)
    return ReplaySource(data, _rollout(parts, spec.rollout, seed), schedule, capacity, seed=seed)


def _teachers_rows(parts: Parts, name: str, spec: schema.RolloutSource) -> DatasetSource:
    """What the teacher writes to as many prompts as the budget can use.

    A response comes at the step at which other streams come to its prompt, as far as no filter drops any.
    """
    train, budget = parts.data.train, parts.stage.budget
    count = len(train)
    if budget.steps is not None:
        count = min(count, math.ceil(budget.steps * parts.stage.batch.size / spec.samples_per_prompt))
    if count == len(train):
        return _rows(parts, _teacher_text(parts, name, spec, train))
    # A part of the first epoch, in its order: shuffled again, it would be in another one than the other streams are.
    some = [train[at] for at in indices(0, count, len(train), parts.seed)]
    text, pad_id = _teacher_text(parts, name, spec, some), parts.tokenizer.eos_token_id
    return DatasetSource(text, seed=parts.seed, pad_id=pad_id, first_in_order=spec.samples_per_prompt == 1)


def _teacher_text(
    parts: Parts, name: str, spec: schema.RolloutSource, prompts: Sequence[Tokenised]
) -> tuple[Tokenised, ...]:
    """The teacher's responses, written now or read from the run's folder."""
    runtime, teacher = parts.runtime, parts.stage.all_teachers[parts.asks]
    with runtime.autocast():
        return teacher_text(
            prompts,
            writer(parts, spec),
            spec,
            folder=parts.folder / "teacher_text" / name,
            origin={"teacher": teacher.model_dump(mode="json"), "data": parts.data.counts["files"]},
            tokenizer=parts.tokenizer,
            seed=parts.seed,
            place=Place(runtime.rank, runtime.world_size, runtime.barrier),
        )


# --- Who writes -------------------------------------------------------------------------------------------------------


def writer(parts: Parts, spec: schema.RolloutSource) -> Writer:
    """Who writes the responses of a rollout."""
    decoding = Decoding(
        max_new_tokens=spec.max_new_tokens,
        stop_ids=frozenset({parts.tokenizer.eos_token_id}),
        temperature=spec.temperature,
        top_k=spec.top_k,
        top_p=spec.top_p,
        no_repeat_ngram=spec.no_repeat_ngram,
    )
    policy, families = _policy(parts, spec.policy)
    if spec.engine == "vllm":
        return _engine(parts, policy, families[0], decoding)
    return LocalWriter(policy, families, decoding, spec.slots)


def _engine(parts: Parts, policy: Policy, family: Family, decoding: Decoding) -> Writer:
    """An engine beside the trained model, which starts from a copy of its weights and is kept in step with them."""
    folder = parts.folder / "engine"
    check_syncable(family)
    family.model.save_pretrained(folder)
    max_tokens = parts.stage.data.max_prompt_tokens + decoding.max_new_tokens
    return SyncedWriter(VllmWriter(str(folder), policy, decoding, max_tokens=max_tokens), family)


def _policy(parts: Parts, spec: schema.AnyPolicy) -> tuple[Policy, list[Family]]:
    match spec:
        case schema.StudentPolicy():
            return Single(), [parts.student]
        case schema.TeacherPolicy():
            return Single(), [parts.teacher.family]
        case schema.TokenMixedPolicy():
            return Mixed(spec.teacher_share, spec.mix), [parts.student, parts.teacher.family]
        case schema.SpeculativePolicy():
            return Speculative(spec.top_k), [parts.student, parts.teacher.family]
