"""What a student is trained to make small. Free functions: logits ``[*, vocab]`` in, nats ``[*]`` out.

They are pure, unreduced and unmasked, send gradient to the student only, and need nothing else of potstill: import them
into any training loop.
"""

from potstill.objectives.divergences import forward_kl, jensen_shannon, reverse_kl
from potstill.objectives.likelihood import cross_entropy

__all__ = ["cross_entropy", "forward_kl", "jensen_shannon", "reverse_kl"]
