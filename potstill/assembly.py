"""Puts together the models of a stage: its teacher and its student. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from potstill import recipe as schema
from potstill.data.examples import Tokenised
from potstill.data.prepare import Prepared
from potstill.errors import TeacherError
from potstill.models import adapters, layout, pruning, quantised, width
from potstill.models.adapter_folder import is_adapter
from potstill.models.families import Family, check_projection, family_of, pack
from potstill.models.fingerprint import fingerprint_of
from potstill.models.held import load_held
from potstill.models.loading import (
    Loaded,
    config_of,
    drawn,
    in_own_memory,
    load,
    load_tokenizer,
    local_source,
    output_rows,
)
from potstill.sources.dataset import batches
from potstill.teachers.align import SharedVocabulary, shared_vocabulary
from potstill.teachers.local import LocalTeacher, Remembering
from potstill.training.checkpoint import Checkpoint
from potstill.training.runtime import Runtime

INFLUENCE_TOKENS = 1024


@dataclass(frozen=True)
class Teaching:
    """A stage's teacher, and the vocabulary it shares with the student.

    ``examiner`` is the same teacher for validation and held-out rows, which it runs over once. ``others`` are the
    further teachers by name, of the same vocabulary.
    """

    teacher: LocalTeacher
    examiner: Remembering
    vocab_size: int
    note: str
    size_on_disk: int
    others: Mapping[str, LocalTeacher] = field(default_factory=dict)

    def named(self, name: str | None) -> LocalTeacher:
        """A teacher by the name that streams have for it; None is the stage's own."""
        return self.teacher if name is None else self.others[name]

    def of(self, stream: schema.Stream) -> LocalTeacher:
        """The teacher that a stream asks."""
        return self.named(stream.teacher)

    @property
    def all(self) -> list[LocalTeacher]:
        """All teachers."""
        return [self.teacher, *self.others.values()]

    @property
    def families(self) -> list[Family]:
        """The models of all teachers, in memory."""
        return [teacher.family for teacher in self.all]


@dataclass(frozen=True)
class Student:
    """A student ready to be trained or measured.

    ``stored_dtype`` is what it will be saved in: that of the model it was made from. ``made`` says how it was made.
    """

    family: Family
    stored_dtype: torch.dtype
    size_on_disk: int
    made: dict[str, Any]


def source_of(stage: schema.Stage) -> tuple[str, str | None]:
    """The model a student is made from, and its revision."""
    student = stage.student
    if isinstance(student, schema.PretrainedStudent | schema.FreshStudent):
        return student.model, student.revision
    if student.model is not None:
        return student.model, None
    return teacher_of(stage)


def teacher_of(stage: schema.Stage) -> tuple[str, str | None]:
    """The model that teaches in a stage that has a teacher, and its revision."""
    assert stage.teacher is not None  # the schema refuses a stage where one is needed
    return model_of(stage, stage.teacher)


def model_of(stage: schema.Stage, teacher: schema.AnyTeacher) -> tuple[str, str | None]:
    """The model that a teacher of a stage is, and its revision."""
    return source_of(stage) if isinstance(teacher, schema.BaseTeacher) else (teacher.model, teacher.revision)


def student_tokenizer(stage: schema.Stage, allow_remote_code: bool) -> Any:
    """The tokenizer that everything is tokenised with."""
    source, revision = source_of(stage)
    return load_tokenizer(source, revision=revision, allow_remote_code=allow_remote_code)


def load_teaching(stage: schema.Stage, tokenizer: Any, runtime: Runtime, allow_remote_code: bool) -> Teaching | None:
    """The stage's teachers, checked against its student; one that is named twice is loaded once.

    Raises: TeacherError where one and the student do not share a tokenizer; ModelError for a teacher we would misread.
    """
    if stage.teacher is None:
        return None
    shared = shared_vocabulary_of(stage, tokenizer, allow_remote_code)
    loaded: dict[str, tuple[LocalTeacher, int]] = {}
    for asked in stage.all_teachers.values():
        if _model(asked) not in loaded:  # one that is named twice is in memory once
            loaded[_model(asked)] = _local_teacher(stage, asked, shared.size, runtime, allow_remote_code)
    teacher, size_on_disk = loaded[_model(stage.teacher)]
    others = {name: loaded[_model(other)][0] for name, other in stage.teachers.items()}
    return Teaching(teacher, Remembering(teacher), shared.size, shared.note, size_on_disk, others)


def _model(asked: schema.AnyTeacher) -> str:
    """What says whether two teachers are one model, held alike."""
    return asked.model_dump_json(exclude={"cache"})


def _local_teacher(
    stage: schema.Stage, asked: schema.AnyTeacher, vocab_size: int, runtime: Runtime, allow_remote_code: bool
) -> tuple[LocalTeacher, int]:
    """A teacher in memory, and its size on disk in bytes.

    It may be let go and loaded again; not so a base, whose weights are the student's.
    """
    name, revision = model_of(stage, asked)
    if isinstance(asked, schema.BaseTeacher):  # the student is put around its weights
        loaded = _untouched(stage, runtime, name, revision=revision, allow_remote_code=allow_remote_code)
        quantise(loaded.model, stage.adapter, runtime)
        return LocalTeacher(_ready(loaded, vocab_size, stage.packing)), loaded.size_on_disk

    def held() -> Loaded:
        where: dict[str, Any] = {"dtype": runtime.dtype, "device": runtime.device, "revision": revision}
        return load_held(name, asked, **where, allow_remote_code=allow_remote_code)

    def ready(loaded: Loaded) -> Family:
        return _ready(loaded, vocab_size, stage.packing)

    loaded = held()
    return LocalTeacher(ready(loaded), lambda: ready(held())), loaded.size_on_disk


def _ready(loaded: Loaded, vocab_size: int, packing: Literal["auto", "always", "never"]) -> Family:
    """The adapter of a model whose logits are as we compute them. Raises: ModelError."""
    family = family_of(loaded.model, vocab_size)
    check_projection(family, loaded.name)
    pack(family, packing)
    return family


def shared_vocabulary_of(stage: schema.Stage, tokenizer: Any, allow_remote_code: bool) -> SharedVocabulary:
    """What teachers and student are compared on, decided without loading any weights.

    Of several teachers it is the smallest vocabulary that one shares with the student, for all of them: a student has
    one, all models have the same tokens, and what is left out is padding.

    Raises: TeacherError where the student's tokenizer and a teacher's differ.
    """
    found = []
    for name, teacher in stage.all_teachers.items():
        try:
            found.append(_shared_with(teacher, stage, tokenizer, allow_remote_code))
        except TeacherError as error:
            asked = model_of(stage, teacher)[0]
            cause = error.cause if name is None else f"teachers.{name}, {asked}: {error.cause}"
            fixes = [fix for fix in (_cut_from_another(stage, asked), error.fix) if fix]
            raise TeacherError(cause, "; or ".join(fixes) or None) from None
    return min(found, key=lambda shared: (shared.size, not shared.note))


def _cut_from_another(stage: schema.Stage, teacher: str) -> str | None:
    """What to set where a student is cut from a model that is named, and is not the teacher."""
    source = stage.student.model if isinstance(stage.student, schema.PrunedStudent) else None
    if source in (None, teacher):
        return None
    return f"set student.model={teacher}: the student is cut from student.model, which is {source}"


def _shared_with(
    teacher: schema.AnyTeacher, stage: schema.Stage, tokenizer: Any, allow_remote_code: bool
) -> SharedVocabulary:
    name, revision = model_of(stage, teacher)
    source, source_revision = source_of(stage)
    return shared_vocabulary(
        load_tokenizer(name, revision=revision, allow_remote_code=allow_remote_code),
        output_rows(name, revision=revision, allow_remote_code=allow_remote_code),
        tokenizer,
        output_rows(source, revision=source_revision, allow_remote_code=allow_remote_code),
    )


def build_student(
    stage: schema.Stage,
    runtime: Runtime,
    vocab_size: int | None,
    calibration: Sequence[Tokenised],
    allow_remote_code: bool,
    resume_from: Checkpoint | None = None,
    seed: int = 0,
    teaching: Teaching | None = None,
) -> Student:
    """The student as the recipe makes it, or as a checkpoint left it.

    Args:
        vocab_size: logits compared with the teacher; all of the student's own where None.
        calibration: rows that Block Influence is measured on, where layers are chosen by it.
        resume_from: whose weights are taken instead of the untouched ones.
        seed: of weights that are drawn.
        teaching: of the stage, whose teacher may be this student without its adapter.
    """
    source, revision = source_of(stage)
    options: dict[str, Any] = {"revision": revision, "allow_remote_code": allow_remote_code}
    # Asked of the source, because a checkpoint is stored in the precision of training.
    stored_dtype = config_of(source, **options).dtype or torch.float32
    whole = resume_from if stage.adapter is None else None  # the checkpoint of an adapter has that alone
    if whole:
        loaded = _untouched(stage, runtime, str(whole.student), **options)
    elif isinstance(stage.student, schema.FreshStudent):
        loaded = drawn(source, seed, dtype=runtime.student_dtype, device=runtime.device, **options)
    elif isinstance(stage.teacher, schema.BaseTeacher) and teaching:
        loaded = _around(teaching, source, stored_dtype, **options)
    else:
        loaded = _untouched(stage, runtime, source, **options)
    model, size = loaded.model, loaded.size_on_disk
    made: dict[str, Any] = {"from": source}
    if layout.is_encoder_decoder(model.config):
        made["kind"] = "encoder-decoder"
    if isinstance(stage.student, schema.PrunedStudent) and not whole:
        model, how = _cut(model, stage.student, list(batches(calibration, 8, loaded.tokenizer.eos_token_id)))
        made |= how
        size = sum(p.numel() for p in model.parameters()) * stored_dtype.itemsize
    if stage.adapter:
        quantise(model, stage.adapter, runtime)
        model = adapters.attach(model, stage.adapter, base_of(stage, made), seed=seed)
        made["adapter"] = adapters.told(model)
        if resume_from:
            adapters.restore(model, resume_from.student)
    else:
        in_own_memory(model)
    family = family_of(model, vocab_size)
    check_projection(family, source)
    pack(family, stage.packing)
    if stage.student.freeze_embeddings and not stage.adapter:  # which leaves nothing but itself to be trained
        pruning.freeze_embeddings(model)
    return Student(family, stored_dtype, size, made)


def _around(teaching: Teaching, source: str, stored_dtype: torch.dtype, **options: Any) -> Loaded:
    """The student of a teacher that is its own base: the teacher's weights again, not a copy of them."""
    model = adapters.mirrored(teaching.teacher.family.model)
    return Loaded(source, model, load_tokenizer(source, **options), stored_dtype, teaching.size_on_disk)


def _untouched(stage: schema.Stage, runtime: Runtime, name: str, **options: Any) -> Loaded:
    """The model to be trained, or to be cut; in the computer's memory where it is to be made smaller first."""
    shrinks = stage.adapter is not None and stage.adapter.quantise_base != "none"
    return load(name, dtype=runtime.student_dtype, device="cpu" if shrinks else runtime.device, **options)


def quantise(model: Any, adapter: schema.Adapter | None, runtime: Runtime) -> None:
    """Bring a base into fewer bits and to its device, in place; nothing where it is there already.

    Raises: ConfigError without bitsandbytes.
    """
    if adapter and adapter.quantise_base != "none" and not any(map(quantised.is_quantised, model.modules())):
        quantised.quantise(model, adapter.quantise_base, runtime.device)


def base_of(stage: schema.Stage, made: dict[str, Any]) -> adapters.Base:
    """What an adapter's base is called by others, and what it is known by."""
    source, revision = source_of(stage)
    kept = ("kept_layers", "encoder_kept_layers", "kept_widths")
    cut: dict[str, Any] = {key: made[key] for key in kept if key in made}
    folder = local_source(source)
    if cut or is_adapter(folder):  # made for this run: it gets a folder when the run is finished
        return adapters.Base(source, fingerprint_of(source), cut)
    name = source if folder is None else str(folder.resolve())
    return adapters.Base(source, fingerprint_of(source), cut, name, revision if folder is None else None)


def _cut(model: Any, student: schema.PrunedStudent, calibration: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    placed = [batch.to(model.device) for batch in calibration]
    wanted = widths_of(student)
    if wanted:
        width.check_widths(model, wanted)  # before minutes are spent on its layers
    chosen = pruning.choose_layers(
        model, student.keep_layers, student.choose_by, placed, keep_encoder=student.keep_encoder_layers
    )
    decoder, encoder = chosen[layout.DECODER], chosen.get(layout.ENCODER)
    how = _told(decoder) | ({f"encoder_{name}": value for name, value in _told(encoder).items()} if encoder else {})
    cut = pruning.cut_layers(model, decoder.layers, encoder.layers if encoder else None)
    if not wanted:
        return cut, how
    kept = width.choose_widths(cut, wanted, placed)
    return width.cut_width(cut, kept), how | {"kept_widths": kept.as_data()}


def widths_of(student: schema.PrunedStudent) -> width.Widths:
    """How wide the recipe wants a student."""
    return width.Widths(student.keep_hidden, student.keep_heads, student.keep_mlp)


def _told(kept: pruning.Kept) -> dict[str, Any]:
    """Which layers of a stack were kept, and why, for the run's record."""
    influence = None if kept.influence is None else [round(value, 4) for value in kept.influence.tolist()]
    return {"kept_layers": list(kept.layers), "of_layers": kept.of_layers, "block_influence": influence}


def calibration_rows(data: Prepared) -> list[Tokenised]:
    """The first training rows that make about a thousand tokens."""
    rows, tokens = [], 0
    for row in data.train:
        if tokens >= INFLUENCE_TOKENS:
            break
        rows.append(row)
        tokens += len(row.prompt_ids) + len(row.response_ids)
    return rows


def equal_time_sft(stage: schema.Stage, seconds: float) -> schema.Stage:
    """The honest question to a distilled student: the same one, fine-tuned on the same text for the same time."""
    imitate = schema.Term(objective=schema.CrossEntropy())
    return stage.model_copy(
        update={
            "name": "equal-time-sft",
            "teacher": None,
            "teachers": {},
            "student": _standing_alone(stage),
            "streams": (schema.Stream(terms=(imitate,)),),
            "budget": schema.Budget(seconds=seconds),
            "checkpoint": stage.checkpoint.model_copy(update={"best_by": _without_teacher(stage.checkpoint.best_by)}),
        }
    )


def _without_teacher(metric: str) -> str:
    """The metric that names the best student, where no teacher is asked."""
    return metric if metric in schema.METRICS_WITHOUT_TEACHER else "perplexity"


def _standing_alone(stage: schema.Stage) -> schema.Student:
    """The student's settings with the model it comes from written out, since the baseline has no teacher."""
    if isinstance(stage.student, schema.PretrainedStudent | schema.FreshStudent):
        return stage.student
    return stage.student.model_copy(update={"model": source_of(stage)[0]})
