"""Retrieval metrics under ties, the evaluator of cross-media retrieval, plots, and the pointing game."""

from cmfah_hf.evaluation.evaluator import DEFAULT_METRICS, METRICS, PAIR_METRICS, RANKINGS, RetrievalEvaluator

__all__ = ["DEFAULT_METRICS", "METRICS", "PAIR_METRICS", "RANKINGS", "RetrievalEvaluator"]
