"""Exporters of codes to databases: Milvus, Vespa, and PostgreSQL with pgvector.

Each exporter writes a folder in the import format of its database, with the definition of the table, and comes with a
function that converts queries to the database's form. `docs/scaling.md` has the commands.
"""

from collections.abc import Callable
from pathlib import Path

from cmfah_hf.retrieval.exporters.milvus import export_milvus, milvus_query
from cmfah_hf.retrieval.exporters.pgvector import export_pgvector, pgvector_query
from cmfah_hf.retrieval.exporters.vespa import export_vespa, vespa_query

__all__ = ["EXPORTERS", "milvus_query", "pgvector_query", "vespa_query"]

# Called as `(index, path, name="cmfah", overwrite=False)`, with a name for the collection, table or document type. The
# folder appears completely or not at all; `overwrite` replaces one that holds an earlier export and nothing else.
EXPORTERS: dict[str, Callable[..., list[Path]]] = {
    "milvus": export_milvus,
    "vespa": export_vespa,
    "pgvector": export_pgvector,
}
