"""B1: a step on data from the second epoch on, the teacher's top 64 or 50 draws read from its cache."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import caches, measuring, peers, workload
from bench.measuring import Effort
from bench.results import Result
from potstill.teachers.local import LocalTeacher

FORMS = ("top 64", "50 draws")
MUST_GAIN = {"TRL GKD": 2.4, "fine-tuning": 1.0, "full logits": None}


def measure(effort: Effort) -> list[Result]:
    """Seconds a step of both forms, against each peer. GKD and the plain loop ask their teacher at every step."""
    models = workload.models()
    texts = workload.rows(models.tokenizer, **({"count": 2, "prompt": 16, "response": 48} if effort.quick else {}))
    source, size = workload.data(models.tokenizer, texts), len(texts)
    others = offpolicy_peers(models, workload.inputs(texts))
    live = workload.stream(source, LocalTeacher(models.teacher))
    exact = {name: step() for name, step in others.items()}
    measuring.assert_equal({"potstill": workload.step(models, live, size=size), **exact})
    others["fine-tuning"] = partial(peers.fine_tuning, models, workload.inputs(texts))
    with TemporaryDirectory() as folder:
        ours = {}
        for name in FORMS:
            streams = {
                kept: workload.stream(source, teacher, caches.SIGNALS[name])
                for kept, teacher in (
                    ("asked", caches.asked(name, models)),
                    ("read", caches.cached(name, models, Path(folder) / name)),
                )
            }
            # The first epoch writes; what the second reads has been rounded to two bytes.
            measuring.assert_equal(
                {kept: workload.step(models, stream, size=size) for kept, stream in streams.items()}, tolerance=1e-3
            )
            ours[name] = partial(workload.step, models, streams["read"], size=size)
        seconds = measuring.in_turns(ours | others, effort.repeats)
    return [
        Result("B1", f"cached step, {name}", "s", seconds[name], peer, seconds[peer], target=MUST_GAIN[peer])
        for name in FORMS
        for peer in others
    ]


def offpolicy_peers(models: workload.Models, given: peers.Inputs) -> dict[str, peers.Step]:
    """Who asks the teacher at every step: the plain loop, and TRL's GKDTrainer where it is installed."""
    found: dict[str, peers.Step] = {"full logits": partial(peers.plain, models, given)}
    try:
        found["TRL GKD"] = partial(peers.gkd(models), given)
    except measuring.LeftOut as reason:
        print(reason)
    return found
