"""B2: a step on data from the second epoch on, all of the teacher's logits made from states that its cache has."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import caches, measuring, workload
from bench.measuring import Effort
from bench.offpolicy_cached import offpolicy_peers
from bench.results import Result
from potstill.teachers.local import LocalTeacher

MUST_GAIN = {"TRL GKD": 1.9, "full logits": None}
AS_ONLINE = 1e-3  # of states kept in bfloat16


def measure(effort: Effort) -> list[Result]:
    """Seconds a step with dense forward KL, against each peer."""
    models = workload.models()
    texts = workload.rows(models.tokenizer, **({"count": 2, "prompt": 16, "response": 48} if effort.quick else {}))
    source, size = workload.data(models.tokenizer, texts), len(texts)
    others = offpolicy_peers(models, workload.inputs(texts))
    with TemporaryDirectory() as folder:
        online = workload.step(models, workload.stream(source, LocalTeacher(models.teacher)), size=size)
        stream = workload.stream(source, caches.cached("states", models, Path(folder)))
        ours = partial(workload.step, models, stream, size=size)
        measuring.assert_equal({"online": online, **{name: step() for name, step in others.items()}})
        measuring.assert_equal({"online": online, "written": ours(), "read": ours()}, AS_ONLINE)
        seconds = measuring.in_turns({"potstill": ours} | others, effort.repeats)
    return [
        Result("B2", "cached states, exact", "s", seconds["potstill"], peer, seconds[peer], target=MUST_GAIN[peer])
        for peer in others
    ]
