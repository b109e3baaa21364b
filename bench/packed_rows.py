"""B8: a student fine-tuned on rows of log-normal lengths, packed against padded; measured by bench/packing.py."""

from __future__ import annotations

from importlib import import_module
from tempfile import TemporaryDirectory

from bench import workload
from bench.measuring import Effort, LeftOut
from bench.results import Result

PADDED = "padded"
MUST_GAIN = {"packed": 1.3, "sorted and packed": None}


def measure(effort: Effort) -> list[Result]:
    """Seconds a thousand useful tokens. Raises: LeftOut where packing is not there."""
    try:
        packing = import_module("bench.packing")
    except ImportError as error:
        raise LeftOut("bench/packing.py is not there") from error
    models = workload.models()
    with TemporaryDirectory() as folder:
        models.student.model.save_pretrained(folder)
        models.tokenizer.save_pretrained(folder)
        del models
        sizes = {"rows": 8, "longest": 64} if effort.quick else {"rows": 16, "longest": 256}
        rates = packing.measure(folder, repeats=effort.repeats, **sizes)
    padded = (1000 / rates[PADDED],)
    return [
        Result("B8", name, "s a 1000 tokens", (1000 / rates[name],), PADDED, padded, target=target)
        for name, target in MUST_GAIN.items()
    ]
