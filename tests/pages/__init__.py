"""Pages of the documentation as something to run: their blocks, their commands, and a folder in which both work."""
