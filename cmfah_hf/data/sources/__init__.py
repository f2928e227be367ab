"""Sources of image-text pairs, a module each.

Each has `matches(request)`, which reads names and no content, and `load(request)`, which gives a data set or a
dictionary of splits with the uniform columns.
"""
