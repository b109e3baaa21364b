from dataclasses import dataclass, field
VOCAB_SIZE, WIDTH, NUM_LAYERS = 2000, 128, 3
@dataclass(frozen=True)
class Sizes:
    copies: dict = field(default_factory=lambda: {"train": 16000, "test": 200})
    animals: dict = field(default_factory=lambda: {"train": 1200, "test": 500})
