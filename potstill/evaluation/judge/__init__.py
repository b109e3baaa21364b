"""A judge: another model, or a person, that marks answers side by side.

``make_pairs`` makes what a judge is asked, ``ask`` asks an OpenAI-compatible server, ``score`` makes the figures.
"""

from __future__ import annotations

from potstill.evaluation.judge.answers import parse_answer, read_answers
from potstill.evaluation.judge.asking import ask
from potstill.evaluation.judge.figures import score
from potstill.evaluation.judge.pairs import make_pairs, read_pairs, write_pairs
from potstill.served.endpoint import endpoint_at

__all__ = ["ask", "endpoint_at", "make_pairs", "parse_answer", "read_answers", "read_pairs", "score", "write_pairs"]
