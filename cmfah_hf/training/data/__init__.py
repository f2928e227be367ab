"""Training data: the pairs of a run, streams, and computed columns that are kept on disk."""
