"""Teachers behind a cache, in the forms that are measured."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.workload import Models
from potstill import recipe
from potstill.teachers.cache.cached import CachedTeacher
from potstill.teachers.cache.forms import DrawsForm, Form, StatesForm, TopKForm
from potstill.teachers.cache.store import Store, new_writer
from potstill.teachers.local import LocalTeacher, SignalSource
from potstill.teachers.sparse import SparseTeacher

SEED = 1
SIGNALS: dict[str, recipe.LogitsSignal | recipe.TopKSignal | recipe.SampledSignal] = {
    "states": recipe.LogitsSignal(),
    "top 64": recipe.TopKSignal(k=64),
    "50 draws": recipe.SampledSignal(draws=50),
}


def asked(name: str, models: Models) -> SignalSource:
    """The teacher who says what is kept in a form."""
    local, signal = LocalTeacher(models.teacher), SIGNALS[name]
    return local if isinstance(signal, recipe.LogitsSignal) else SparseTeacher(local, signal, SEED)


def form(name: str, models: Models) -> Form:
    vocab = models.teacher.vocab_size
    match SIGNALS[name]:
        case recipe.TopKSignal(k=k, temperature=temperature):
            return TopKForm(k=k, temperature=temperature, vocab_size=vocab)
        case recipe.SampledSignal(draws=draws, temperature=temperature):
            return DrawsForm(draws=draws, temperature=temperature, vocab_size=vocab, seed=SEED)
        case _:
            return StatesForm(models.teacher.head, torch.bfloat16, read_as=torch.float32)


def cached(name: str, models: Models, folder: Path) -> CachedTeacher:
    """The teacher behind an empty cache."""
    return CachedTeacher(asked(name, models), form(name, models), Store(folder, {"form": name}, new_writer()))
