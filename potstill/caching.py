"""Puts a stage's teachers behind their caches: which streams, in which form, in which folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from potstill import recipe as schema
from potstill.assembly import Teaching, model_of
from potstill.data.examples import Tokenised
from potstill.errors import CacheError
from potstill.models.fingerprint import parts_of
from potstill.run import remove_folder
from potstill.teachers.cache.cached import CachedTeacher
from potstill.teachers.cache.forms import DrawsForm, Form, LogitsForm, StatesForm, TopKForm
from potstill.teachers.cache.parts import RECORD
from potstill.teachers.cache.store import CARD, Store, check_key, new_writer
from potstill.teachers.local import SignalSource
from potstill.training.runtime import Runtime

FOLDER = Path("caches")
BUFFER = "replayed"  # in the run's folder, while it runs
VERSION = 1  # of the files
LEAVE_FREE = 2**28  # bytes of a disk that a cache never fills
SAMPLE = 1000  # rows that an estimate is made from


@dataclass
class Caches:
    """The caches of one stage's teachers. A folder is opened once, whoever reads it.

    Args:
        stage: whose teachers they are.
        teaching: the teachers.
        runtime: the processes.
        folder: of the run, for what is of no use to others; None where there is no run.
        seed: of draws.
        root: where caches have folders of their own.
    """

    stage: schema.Stage
    teaching: Teaching
    runtime: Runtime
    folder: Path | None
    seed: int
    root: Path = FOLDER
    left_out: dict[str, str] = field(default_factory=dict)  # streams that ask anew each time, and why
    _open: dict[Path, Store] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse folders that cannot be used before any work is done: those that are kept in whatever rows there are,
        and those that are named and have other keys. Raises: CacheError."""
        for spec in (spec for spec in self.stage.streams if not spec.not_cacheable):
            asked = self.stage.all_teachers[spec.teacher]
            named = asked.cache.folder and (Path(asked.cache.folder).expanduser() / CARD).exists()
            if asked.cache.when == "never" or (asked.cache.when == "auto" and not named):
                continue
            form = self.form_of(spec)
            folder, key = self.folder_of(spec, form), self.key_of(spec, form)
            if asked.cache.when == "always":
                self._store(folder, key, asked)
            else:
                check_key(folder, key)

    def behind(self, spec: schema.Stream, teacher: SignalSource, rows: Sequence[Tokenised]) -> SignalSource:
        """The teacher of a stream behind its cache; itself where nothing is to be kept.

        Args:
            spec: the stream.
            teacher: who is asked, in the form of the stream's signal.
            rows: of the stream, an epoch of them.
        Raises: CacheError for a folder of another key, or a disk that has no room.
        """
        asked = self.stage.all_teachers[spec.teacher]
        if asked.cache.when == "never" or spec.not_cacheable:
            return teacher
        if asked.cache.when == "auto" and not comes_again(self.stage, len(rows)):
            self.left_out[spec.name] = (
                f"teacher.cache is auto, and this run comes to no row of {spec.name} twice: nothing is kept or read. "
                "teacher.cache=always does so all the same, for other runs"
            )
            return teacher
        form = self.form_of(spec)
        key = self.key_of(spec, form)
        store = self._store(self.folder_of(spec, form), key, asked)
        check_room(store, form, rows)
        replays = isinstance(spec.source, schema.ReplaySource)
        buffer = self._store(self.folder / BUFFER, key, asked) if self.folder and replays else None
        return CachedTeacher(teacher, form, store, buffer=buffer)

    def form_of(self, spec: schema.Stream) -> Form:
        """How what a stream's teacher says is kept."""
        cache, vocab_size = self.stage.all_teachers[spec.teacher].cache, self.teaching.vocab_size
        head = self.teaching.of(spec).head_on(self.runtime.device)
        precise = torch.promote_types(head.weight.dtype, torch.float32)
        match spec.signal:
            case schema.TopKSignal(k=k, temperature=temperature):
                return TopKForm(k, temperature, vocab_size, precise)
            case schema.SampledSignal(draws=draws, temperature=temperature):
                return DrawsForm(draws, temperature, vocab_size, self.seed, precise)
        if cache.form == "logits":
            return LogitsForm(vocab_size, head.weight.dtype)
        exact = cache.form == "states"
        return StatesForm(head, head.weight.dtype if exact else torch.bfloat16, head.weight.dtype)

    def key_of(self, spec: schema.Stream, form: Form) -> dict[str, Any]:
        """All that a row depends on beside its tokens, by which it is known."""
        asked = self.stage.all_teachers[spec.teacher]
        name, revision = model_of(self.stage, asked)
        depends = {"revision": revision, **_held(self.stage, asked)}  # a folder's weights are hashed, and it has none
        return {
            "version": VERSION,
            **parts_of(name),
            **{f"teacher.{name}": value for name, value in depends.items() if value not in ("auto", "none", None)},
            "dtype": str(self.runtime.dtype).removeprefix("torch."),
            "vocabulary": self.teaching.vocab_size,
            "form": form.name,
            **form.settings,
        }

    def folder_of(self, spec: schema.Stream, form: Form) -> Path:
        """Where it is: the folder that the recipe names, or one that the key has for itself."""
        named = self.stage.all_teachers[spec.teacher].cache.folder
        if named is not None:
            return Path(named).expanduser()
        name = Path(self._name(spec)).name or "teacher"
        return self.root / f"{name}-{form.name}-{_sha256(self.key_of(spec, form))[:12]}"

    def close(self) -> None:
        """Finish what is being written."""
        for store in self._open.values():
            store.close()

    def forget_replayed(self) -> None:
        """Remove what was kept for as long as training went on."""
        if self.folder and self.runtime.is_main:
            remove_folder(self.folder / BUFFER)

    def _name(self, spec: schema.Stream) -> str:
        return model_of(self.stage, self.stage.all_teachers[spec.teacher])[0]

    def _store(self, folder: Path, key: dict[str, Any], asked: schema.AnyTeacher) -> Store:
        if folder not in self._open:
            runtime, about = self.runtime, {"teacher": model_of(self.stage, asked)[0]}
            place: dict[str, int] = {"rank": runtime.rank, "world_size": runtime.world_size}
            writer = self._writer  # which all processes ask for together
            # All processes begin with the rows that the main one finds, whatever is written before they have opened it.
            main = Store(folder, key, writer, about=about, **place) if runtime.is_main else None
            found = runtime.share(None if main is None else main.state_dict())
            store = Store(folder, key, writer, about=about, **place) if main is None else main
            store.load_state_dict(found)
            self._open[folder] = store
        return self._open[folder]

    @cached_property
    def _writer(self) -> str:
        return str(self.runtime.share(new_writer() if self.runtime.is_main else None))


def _held(stage: schema.Stage, teacher: schema.AnyTeacher) -> dict[str, Any]:
    """How a teacher's weights are held, as far as what it says depends on that."""
    if isinstance(teacher, schema.BaseTeacher):  # held as its student is, and in the student's precision
        return {"base": True, "quantise": stage.adapter.quantise_base if stage.adapter else None}
    return {name: value for name, value in teacher.held.items() if name in ("dtype", "quantise")}


def is_kept(stage: schema.Stage, spec: schema.Stream) -> bool:
    """Whether a stage may keep what a teacher says in a stream whose text is there before training."""
    if spec.not_cacheable or isinstance(spec.source, schema.RolloutSource):
        return False
    return stage.all_teachers[spec.teacher].cache.when != "never"


def keeping(stage: schema.Stage, **settings: Any) -> schema.Stage:
    """The stage with teachers that keep all that they say; ``settings`` are of their caches."""

    def always(teacher: schema.AnyTeacher) -> schema.AnyTeacher:
        return teacher.model_copy(update={"cache": teacher.cache.model_copy(update={"when": "always", **settings})})

    own = {"teacher": stage.teacher and always(stage.teacher)}
    return stage.model_copy(update={**own, "teachers": {name: always(one) for name, one in stage.teachers.items()}})


def comes_again(stage: schema.Stage, num_rows: int) -> bool:
    """Whether a stage comes to some of its rows more than once; taken to where its budget does not say."""
    budget = stage.budget
    if budget.steps is not None:
        return budget.steps * stage.batch.size > num_rows
    return budget.epochs is None or budget.epochs > 1


def check_room(store: Store, form: Form, rows: Sequence[Tokenised]) -> None:
    """Refuse to begin what the disk has no room for. Raises: CacheError."""
    missing, free = estimate(form, rows, len(store)), shutil.disk_usage(store.folder).free
    if missing > free - LEAVE_FREE:
        raise CacheError(
            f"{store.folder} would take about {_size(missing)} more, and its disk has {_size(free)} free, where "
            f"{_size(LEAVE_FREE)} are to stay free",
            "set teacher.cache.folder to another disk, signal to sampled or top_k, or teacher.cache to never",
        )


def estimate(form: Form, rows: Sequence[Tokenised], num_kept: int = 0) -> float:
    """Bytes that rows take which are not kept yet, from the lengths of some of them."""
    step = max(1, len(rows) // SAMPLE)
    lengths = [len(rows[at].response_ids) for at in range(0, len(rows), step)]
    per_row = RECORD.itemsize + form.bytes_per_token * sum(lengths) / max(1, len(lengths))
    return max(0, len(rows) - num_kept) * per_row


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def _sha256(key: dict[str, Any]) -> str:
    return sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
