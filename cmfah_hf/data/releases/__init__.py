"""Preparation of released data sets for the Hub: checks, corrections, Parquet."""
