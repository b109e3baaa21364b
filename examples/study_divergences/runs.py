"""One result: a teacher, a training seed and a method, from the initial student to its figures on disk."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from corpus import held_out, streams, windows
from jaxtyping import Int
from measure import gradient_noise, held_out_samples, panel, skew_bounds
from methods import METHODS, Method, distil, written
from models import DISTIL, TEACHER_TEXT, load, student_folder, teacher_folder
from safetensors.torch import load_file, save_file
from settings import TEACHER_ITSELF, Settings
from store import Place, published, read_result, write_json
from torch import Tensor

from potstill.evaluation.exposure import Samples
from potstill.models.families import Causal

INITIAL_STUDENT = "initial student"
GRADIENT_NOISE, SKEW_BOUNDS = "gradient_noise", "skew_bounds"
NO_SEED = 0  # of what no training seed has a part in
WRITER_SLOTS = 480


def finished(place: Place, settings: Settings) -> dict[str, Any] | None:
    """The result that lies there, None where there is none.

    Raises: SystemExit where it was made with other models or sizes.
    """
    return read_result(place, _made_with(place, settings))


def perform(place: Place, settings: Settings) -> float:
    """Make a result and write it; the seconds it took. A run whose loss is not finite is a result: it failed."""
    begun = time.perf_counter()
    result: dict[str, Any] = {"teacher": place.teacher, "seed": place.seed, "method": place.name}
    try:
        found = _measured(place, settings)
    except FloatingPointError as failure:
        found = {"failed": str(failure), "metrics": {}}
    write_json(place.path, result | _made_with(place, settings) | found)
    return time.perf_counter() - begun


def _measured(place: Place, settings: Settings) -> dict[str, Any]:
    teacher, _, teachers = _teacher(place.out, place.teacher, settings)
    ids = held_out(place.out, settings)
    if place.name == TEACHER_ITSELF:
        return {"metrics": panel(teacher, teacher, teachers, ids, settings)}
    student, _ = load(student_folder(place.out, place.seed))
    if place.name == SKEW_BOUNDS:
        return {"metrics": {}, "rows": skew_bounds(student, teacher, ids[: settings.batch], settings)}
    if place.name == GRADIENT_NOISE:
        prompts = ids[: settings.batch, : settings.prompt_tokens]
        return {"metrics": gradient_noise(student, teacher, prompts, settings)}
    cost = {}
    if place.name != INITIAL_STUDENT:
        method = METHODS[place.name]
        rows = _rows(place, method, teacher, settings)
        begun = time.process_time()
        losses = distil(student, teacher, method, rows, settings, place.seed)
        cost = {"train_s": time.process_time() - begun, "last_loss_nats": losses[-1]}
    return {"metrics": panel(student, teacher, teachers, ids, settings) | cost}


def _rows(place: Place, method: Method, teacher: Causal, settings: Settings) -> Int[Tensor, "row token"]:
    """What a method reads, in a seed's order; all methods of a seed see the same prompts."""
    count = settings.steps * settings.batch
    rows = windows(streams(place.out)["train"], count, settings.window_tokens, DISTIL + place.seed)
    if method.prefixes != "teacher":
        return rows
    _, teacher_hash, _ = _teacher(place.out, place.teacher, settings)
    path = place.out / "written" / f"{teacher_hash[:16]}-seed-{place.seed}.safetensors"
    if not path.exists():
        prompts = rows[:, : settings.prompt_tokens]
        text = written(teacher, prompts, settings, seed=TEACHER_TEXT + place.seed, slots=WRITER_SLOTS)
        with published(path) as draft:
            save_file({"rows": text}, draft)
    return load_file(path)["rows"]


@cache
def _teacher(out: Path, seed: int, settings: Settings) -> tuple[Causal, str, Samples]:
    """A teacher, the hash of its weights, and its responses to the held-out prompts."""
    family, teacher_hash = load(teacher_folder(out, seed))
    family.requires_grad_(False).eval()
    return family, teacher_hash, held_out_samples(family, held_out(out, settings), settings)


@cache
def _hash(folder: Path) -> str:
    return load(folder)[1]


def _made_with(place: Place, settings: Settings) -> dict[str, str]:
    teacher = teacher_folder(place.out, place.teacher)
    student = teacher if place.seed == NO_SEED else student_folder(place.out, place.seed)
    return {"teacher_hash": _hash(teacher), "student_hash": _hash(student), "settings": settings.digest}


def begin_process() -> None:
    """What every process of the study does first; one thread, so that sums are added up in one order."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
