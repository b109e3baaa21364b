"""What students can be made equal in before they are compared. Quick to import: the command line names them."""

from __future__ import annotations

from enum import StrEnum


class At(StrEnum):
    """A cost, along which cells are compared at the largest value that all of them have reached."""

    steps = "steps"
    teacher_tokens = "teacher_tokens"
    seconds = "seconds"
    flops = "flops"

    @property
    def words(self) -> str:
        """What it counts, in a sentence."""
        words = {At.teacher_tokens: "teacher tokens", At.seconds: "seconds of training", At.flops: "FLOPs"}
        return words.get(self, self.value)
