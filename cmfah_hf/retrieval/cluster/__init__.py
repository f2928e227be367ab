"""An index, and encoding for it, over several processes and machines by Ray. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, {"ShardedHashIndex": "sharded_index", "encode_with_ray": "encoding"}
)
