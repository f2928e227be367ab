"""Executable pages of the documentation: their blocks, their commands, and a folder to run both."""
