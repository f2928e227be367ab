"""Rows of any source with the uniform columns `id`, `image`, `text` and `labels`."""
