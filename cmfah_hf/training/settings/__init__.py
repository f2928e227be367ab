"""Settings of a run: arguments, their ranges, YAML files that extend one another, and the command line."""
