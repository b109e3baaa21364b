"""Models behind an OpenAI-compatible server: one question, and many of them."""
