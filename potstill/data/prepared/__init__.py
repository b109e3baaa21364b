"""Rows that were tokenised before the run: written as Arrow files by potstill, or as .bin and .idx by MiniLLM."""
