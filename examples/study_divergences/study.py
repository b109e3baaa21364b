"""The study of divergences on TinyStories: declared claims, fresh training seeds, a table that nobody types.

    python examples/study_divergences/study.py --out runs/study --seeds 5 --jobs 2

Teachers and students are trained from scratch. A study that was stopped goes on where it was when the same command is
given again: every finished run is a file. ``--smoke`` runs two methods with two seeds at tiny sizes.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from claims import Claim, judge, read_claims
from corpus import prepare, streams
from figures import draw_figures
from methods import METHODS
from models import WEIGHTS, make_initial_student, make_teacher, student_folder, teacher_folder
from report import Study, write_report
from runs import (
    GRADIENT_NOISE,
    INITIAL_STUDENT,
    NO_SEED,
    SKEW_BOUNDS,
    begin_process,
    finished,
    perform,
)
from settings import FIRST_SEED, FULL, SMOKE, SMOKE_METHODS, TEACHER_ITSELF, Settings
from store import Place, digest, published

CLAIMS = Path(__file__).with_name("claims.yaml")
Job = tuple[str, Callable[..., Any], tuple[Any, ...]]  # its name, and what is called


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    settings = SMOKE if args.smoke else FULL
    begin_process()
    args.out.mkdir(parents=True, exist_ok=True)
    freeze_claims(args.out)
    alpha, claims = read_claims(args.out / "claims.yaml")
    seeds = list(range(FIRST_SEED, FIRST_SEED + args.seeds))
    places = plan(args.out, claims, seeds, args.teachers, args.methods)

    prepare(args.out, settings)
    run_all(models_to_make(args.out, settings, args.teachers, seeds), args.jobs)
    waiting = [place for place in places if finished(place, settings) is None]
    print(f"{len(places)} results, {len(places) - len(waiting)} of them there already", flush=True)
    run_all([(_name(place), perform, (place, settings)) for place in waiting], args.jobs)

    study = collect(args.out, settings, claims, alpha, seeds, places)
    write_report(args.out, study)
    prefixes = {name: method.prefixes for name, method in METHODS.items()}
    draw_figures(args.out, study.figures, study.verdicts, prefixes, settings.error_lengths)
    for verdict in study.verdicts:
        teacher = "" if verdict.claim.exact else f", teacher {verdict.teacher}"
        print(f"{verdict.claim.id}{teacher}: {verdict.verdict}")
    print(f"all of it: {args.out / 'results.md'}")


def freeze_claims(out: Path) -> None:
    """Copy the rules beside the results before anything is run.

    Raises: SystemExit where other rules lie there: rules are not changed once there are figures.
    """
    frozen = out / "claims.yaml"
    if not frozen.exists():
        with published(frozen) as draft:
            draft.write_bytes(CLAIMS.read_bytes())
    elif frozen.read_bytes() != CLAIMS.read_bytes():
        raise SystemExit(f"{CLAIMS} is not what this study was begun with ({frozen}); give another --out")


def plan(
    out: Path, claims: Iterable[Claim], seeds: Sequence[int], num_teachers: int, methods: Sequence[str]
) -> list[Place]:
    """Every result there is to be, a seed at a time. The first teacher has all methods, others what claims ask."""
    places = []
    for teacher in range(1, num_teachers + 1):
        asked = {
            name
            for claim in claims
            if teacher in claim.teachers
            for part in (*claim.comparisons, *claim.reported)
            for name in (part.of, part.against)
        }
        measures = [GRADIENT_NOISE, SKEW_BOUNDS] if teacher == 1 else []
        chosen = [name for name in methods if teacher == 1 or name in asked]
        places.append(Place(out, teacher, NO_SEED, TEACHER_ITSELF))
        places += [Place(out, teacher, seed, name) for seed in seeds for name in [INITIAL_STUDENT, *measures, *chosen]]
    return places


def models_to_make(out: Path, settings: Settings, num_teachers: int, seeds: Iterable[int]) -> list[Job]:
    """The teachers and initial students that are not there yet."""
    jobs: list[tuple[Path, Job]] = [
        (teacher_folder(out, seed), (f"teacher {seed}", make_teacher, (out, settings, seed)))
        for seed in range(1, num_teachers + 1)
    ]
    jobs += [
        (student_folder(out, seed), (f"initial student {seed}", make_initial_student, (out, settings, seed)))
        for seed in seeds
    ]
    return [job for folder, job in jobs if not folder.exists()]


def run_all(jobs: Sequence[Job], processes: int) -> None:
    """Do all of it, in this process or in several of one thread each, and say what is done."""
    begun = time.perf_counter()

    def done(count: int, name: str) -> None:
        print(f"[{count}/{len(jobs)}] {name}, {time.perf_counter() - begun:.0f} s in all", flush=True)

    if processes == 1:
        for count, (name, call, arguments) in enumerate(jobs, 1):
            call(*arguments)
            done(count, name)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), begin_process) as pool:
        futures = {pool.submit(call, *arguments): name for name, call, arguments in jobs}
        for count, future in enumerate(as_completed(futures), 1):
            future.result()
            done(count, futures[future])


def collect(
    out: Path, settings: Settings, claims: Sequence[Claim], alpha: float, seeds: Sequence[int], places: Iterable[Place]
) -> Study:
    """Everything that was measured, and what it says about the claims."""
    figures: dict[int, dict[str, dict[int, dict[str, float]]]] = {}
    exact: dict[str, list[Any]] = {SKEW_BOUNDS: []}
    failures = []
    for place in places:
        result = finished(place, settings)
        assert result is not None
        exact[SKEW_BOUNDS] += result.get("rows", [])
        if "failed" in result:
            failures.append(f"{_name(place)}: {result['failed']}")
        if result["metrics"]:
            by_seed = figures.setdefault(place.teacher, {}).setdefault(place.name, {})
            by_seed[place.seed] = result["metrics"]
    facts = {
        "training seeds": ", ".join(map(str, seeds)),
        **{f"teacher {teacher}, SHA-256": digest(teacher_folder(out, teacher) / WEIGHTS) for teacher in figures},
        "claims.yaml, SHA-256": digest(out / "claims.yaml"),
        "tokens.safetensors, SHA-256": digest(out / "tokens.safetensors"),
        **{f"{split} tokens": len(tokens) for split, tokens in streams(out).items()},
        "steps of each method": settings.steps,
        "runs that failed": "; ".join(failures) or "none",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, one thread a process, float32",
    }
    return Study(figures, exact, judge(claims, alpha, seeds, figures, exact), settings, facts)


def _name(place: Place) -> str:
    return f"teacher {place.teacher}, seed {place.seed}, {place.name}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; one that is there already is gone on with")
    parser.add_argument("--seeds", type=int, help="training seeds: 5, and 2 in a smoke")
    parser.add_argument("--teachers", type=int, help="teachers: 2, and 1 in a smoke")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="all; two in a smoke")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: that it runs, not what it finds")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or (2 if args.smoke else 5)
    args.teachers = args.teachers or (1 if args.smoke else 2)
    args.methods = args.methods or (list(SMOKE_METHODS) if args.smoke else list(METHODS))
    args.out = args.out.resolve()
    return args


if __name__ == "__main__":
    main()
