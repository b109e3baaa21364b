"""The sizes of the study: the whole one, and a small one that shows that everything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import sha256
from json import dumps


@dataclass(frozen=True)
class Shape:
    """A GPT-2-shaped model: pre-normalised blocks, GELU, learnt positions, tied head, no dropout."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Settings:
    """Everything that decides a figure, apart from seeds and methods. Lengths in tokens, batches in rows."""

    vocab_size: int = 512
    prompt_tokens: int = 16
    response_tokens: int = 48
    max_positions: int = 96
    teacher: Shape = Shape(128, 3, 4)
    teacher_steps: int = 1400
    teacher_batch: int = 32
    teacher_learning_rate: float = 3e-3
    student: Shape = Shape(32, 1, 2)
    initial_steps: int = 400
    initial_learning_rate: float = 3e-3
    steps: int = 250
    batch: int = 24
    learning_rate: float = 1.5e-3
    max_grad_norm: float = 1.0
    held_out_windows: int = 384
    error_lengths: tuple[int, ...] = (8, 24, 48)  # the last is the whole response
    gradient_draws: int = 64
    skew: float = 0.1

    @property
    def window_tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def digest(self) -> str:
        """What results of other sizes are told by."""
        return sha256(dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


FULL = Settings()
SMOKE = Settings(
    prompt_tokens=8,
    response_tokens=16,
    teacher=Shape(48, 2, 2),
    teacher_steps=120,
    teacher_batch=16,
    student=Shape(16, 1, 1),
    initial_steps=40,
    steps=40,
    batch=8,
    held_out_windows=32,
    error_lengths=(8, 16),
    gradient_draws=8,
)
SMOKE_METHODS = ("SFT", "on_RKL")
FIRST_SEED = 101  # the pilot's seeds were below 10
TEACHER_ITSELF = "teacher itself"  # the row of the panel that measures the teacher as if it were a student
