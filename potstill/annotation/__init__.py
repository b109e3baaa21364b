"""What a teacher says about rows, written once and kept with its origin: labels, rationales, responses.

``annotate`` asks; an ``Annotator`` answers: a model of this process, or one behind a server.
"""

from __future__ import annotations

from potstill.annotation.annotate import Annotated, Job, annotate
from potstill.annotation.annotator import Annotator
from potstill.annotation.task import Task

__all__ = ["Annotated", "Annotator", "Job", "Task", "annotate"]
