"""Inspection of data sets: contents, defects and duplicates."""
