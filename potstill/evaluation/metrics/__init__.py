"""Figures computed from numbers and texts, without any model."""
