"""The searchers over packed codes: FastScan, posting lists, inverted lists and exact IVF."""
