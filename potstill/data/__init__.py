"""From a file of prompts and responses to batches: read, sift, split, tokenise, order, collate."""
