"""``python -m potstill``, which is also what torchrun starts: ``torchrun --nproc-per-node 2 -m potstill train ...``."""

from potstill.cli import main

main()
