"""Inside a model's layers: which channels matter for a task, which of them are chosen, and how sure that choice is."""
