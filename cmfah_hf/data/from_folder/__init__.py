"""Data sets from folders as people have them: sidecars, class folders, tables, metadata in images."""
