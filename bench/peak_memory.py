"""B6: what the vocabulary adds to the peak memory of a step on data, over the same step without any logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench import measuring, peers, workload
from bench.measuring import Effort
from bench.results import Result
from potstill.teachers.local import LocalTeacher

FLOOR = "no vocabulary"
SUBJECTS = ("potstill", "full logits", "TRL GKD")
NOISE = 64.0  # MiB: what is less is none
MUST_GAIN = {"full logits": None, "TRL GKD": 1 / 0.12}


def measure(effort: Effort) -> list[Result]:
    """MiB above the floor, at least 64. Each figure is one of a process of its own: peaks repeat within a few MiB."""
    sizes = {"count": 2, "prompt": 16, "response": 48} if effort.quick else {}
    peaks = {}
    for subject in (FLOOR, *SUBJECTS):
        try:
            peaks[subject] = measuring.extra_mib("bench.peak_memory", subject, **sizes)
        except measuring.LeftOut as reason:
            print(reason)
    above = {name: (max(NOISE, peak - peaks[FLOOR]),) for name, peak in peaks.items()}
    return [
        Result("B6", "peak above no vocabulary", "MiB", above["potstill"], name, above[name], target=MUST_GAIN[name])
        for name in SUBJECTS[1:]
        if name in above
    ]


def prepared(subject: str, **sizes: int) -> Callable[[], float]:
    """A step, with everything it needs loaded, the optimizer's moments among it."""
    models = workload.models()
    texts = workload.rows(models.tokenizer, **sizes)
    given = workload.inputs(texts)
    peers.no_vocabulary(models, given)
    match subject:
        case "potstill":
            stream = workload.stream(workload.data(models.tokenizer, texts), LocalTeacher(models.teacher))
            return partial(workload.step, models, stream, size=len(texts))
        case "full logits":
            return partial(peers.plain, models, given)
        case "TRL GKD":
            return partial(peers.gkd(models), given)
    return partial(peers.no_vocabulary, models, given)
