"""Sources of image-text pairs, a module each, with the functions `matches(request)` and `load(request)`."""
