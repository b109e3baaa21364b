"""Sweeps: a grid of settings, a run for each combination, one table. ``sweep.sweep`` runs what is left of one."""
