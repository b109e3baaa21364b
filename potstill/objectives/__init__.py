"""What a student is trained to make small. Free functions: logits ``[*, vocab]`` in, nats ``[*]`` out.

They are pure, unreduced and unmasked, send gradient to the student only, and need nothing else of potstill: import them
into any training loop.
"""

from potstill.objectives.assistants import assistant_divergence, interpolated_forward_kl
from potstill.objectives.distances import adaptive_kl, alpha_beta, logit_matching, squared_hellinger, total_variation
from potstill.objectives.divergences import (
    forward_kl,
    jeffreys,
    jensen_shannon,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
)
from potstill.objectives.likelihood import cross_entropy
from potstill.objectives.regularisers import embedding_similarity, entropy, unlikelihood

__all__ = [
    "adaptive_kl",
    "alpha_beta",
    "assistant_divergence",
    "cross_entropy",
    "embedding_similarity",
    "entropy",
    "forward_kl",
    "interpolated_forward_kl",
    "jeffreys",
    "jensen_shannon",
    "logit_matching",
    "reverse_kl",
    "skew_forward_kl",
    "skew_reverse_kl",
    "squared_hellinger",
    "total_variation",
    "unlikelihood",
]
