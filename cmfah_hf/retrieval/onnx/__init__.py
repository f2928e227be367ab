"""The towers of a model as ONNX files: their description, and writing them. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {"OnnxFiles": "files", "export_onnx": "export"})
