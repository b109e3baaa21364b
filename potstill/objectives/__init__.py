"""What a student is trained to make small. Free functions, pure, unreduced and unmasked; gradient to the student only.

Most take logits ``[*, vocab]`` and return nats ``[*]``; the estimators take log-probabilities of sampled tokens, and
four compare hidden states. They need nothing else of potstill: import them into any training loop. More of the kind,
by its own names: ``objectives.sparse`` (top-k and drawn teachers), ``objectives.credit`` (advantages of sampled
responses), ``objectives.features`` (maps between states of different widths) and ``objectives.cross_tokenizer``
(models of different tokenizers).
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
from potstill.objectives.estimators import k1, k3, policy_gradient, squared_log_ratio, token_policy_gradient
from potstill.objectives.features import hidden_correlation, hidden_cosine, hidden_mse, relation_divergence
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
    "hidden_correlation",
    "hidden_cosine",
    "hidden_mse",
    "interpolated_forward_kl",
    "jeffreys",
    "jensen_shannon",
    "k1",
    "k3",
    "logit_matching",
    "policy_gradient",
    "relation_divergence",
    "reverse_kl",
    "skew_forward_kl",
    "skew_reverse_kl",
    "squared_hellinger",
    "squared_log_ratio",
    "token_policy_gradient",
    "total_variation",
    "unlikelihood",
]
