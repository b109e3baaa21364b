"""Potstill beside its peers: time and memory, each a ratio in one run. ``python -m bench``; see bench/README.md."""
