"""Hash codes, their index, and a retriever over both media. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "BaseHashIndex": "base",
        "HashIndex": "index",
        "ImageOptions": "image_options",
        "ImageTextEncoder": "encoder",
        "QueryResults": "results",
        "SearchResults": "results",
        "Term": "terms",
        "TorchEncoder": "torch_encoder",
        "ShardedHashIndex": "cluster",
        "encode_with_ray": "cluster",
        "CrossMediaRetriever": "retriever",
        "EXPORTERS": "exporters",
        "milvus_query": "exporters",
        "pgvector_query": "exporters",
        "vespa_query": "exporters",
    },
)
