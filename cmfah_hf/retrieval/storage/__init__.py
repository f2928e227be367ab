"""The rows of an index in memory and on disk: codes, ids, metadata, segments and the file format."""
