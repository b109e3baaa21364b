"""What a plan is made of: a few steps that are measured, arithmetic on them, and memory by what takes it."""
