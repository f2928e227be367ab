"""WebDataset shards for tests."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def write_shard(path: Path, samples: Mapping[str, Mapping[str, bytes | str]]) -> Path:
    """Writes a tar file with the files of each sample by ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for ending, given in files.items():
                content = given.encode() if isinstance(given, str) else given
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path
