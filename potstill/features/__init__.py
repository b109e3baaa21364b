"""Inside models' layers: which channels matter for a task, which layers and channels of two models meet, and how."""
