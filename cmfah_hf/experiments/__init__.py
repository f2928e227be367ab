"""Experiments: grids of runs, files of results, and tables, significance tests and plots."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Grid": "grid",
        "GridRun": "grid",
        "OnRay": "workers",
        "read_grid": "grid_files",
        "run_grid": "running",
        "Result": "results",
        "curves_of_runs": "curves",
        "read_results": "results",
        "write_results": "results",
        "compare": "report",
        "summarize": "report",
        "Table": "report",
    },
)
