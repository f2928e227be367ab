"""The checks that transformers runs on its own models, out of its source distribution.

They are not part of the installed package. `make test` runs this file, which downloads the source distribution of the
installed version. On import, its `tests` folder becomes the package `transformers_checks`, with stubs for modules that
are not distributed and do not concern models like ours (text generation, exporters).
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import transformers

SOURCE = Path(
    os.environ.get(
        "TRANSFORMERS_SOURCE", Path(__file__).parents[2] / ".cache" / f"transformers-{transformers.__version__}"
    )
)
AVAILABLE = (SOURCE / "tests" / "test_modeling_common.py").is_file()


def load(module: str) -> types.ModuleType:
    """One of the test modules of transformers, such as `test_modeling_common`."""
    if "transformers_checks" not in sys.modules:
        package = types.ModuleType("transformers_checks")
        package.__path__ = [str(SOURCE / "tests")]
        sys.modules["transformers_checks"] = package
        stubs = {
            "exporters": {},
            "exporters.test_export": {"ExportTesterMixin": object},
            "generation": {},
            "generation.test_utils": {"GenerationTesterMixin": object},
            "utils": {},
            "utils.test_configuration_utils": {
                "config_common_kwargs": {"return_dict": False, "output_hidden_states": True, "dtype": "float16"}
            },
        }
        for name, attributes in stubs.items():
            stub = types.ModuleType(f"transformers_checks.{name}")
            stub.__path__ = []
            vars(stub).update(attributes)
            sys.modules[stub.__name__] = stub
        fetching = types.ModuleType("fetch_hub_objects_for_ci")
        fetching.url_to_local_path = lambda url: url
        sys.modules.setdefault(fetching.__name__, fetching)
    return importlib.import_module(f"transformers_checks.{module}")


def fetch() -> None:
    """Downloads the `tests` folder of the installed version's source distribution to `SOURCE`."""
    requirement = f"transformers=={transformers.__version__}"
    with tempfile.TemporaryDirectory() as folder:
        command = ["download", "--quiet", "--no-deps", "--no-binary", "transformers", "--dest", folder, requirement]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        with tarfile.open(archive) as tar:
            members = [member for member in tar if member.name.partition("/")[2].startswith("tests/")]
            tar.extractall(SOURCE.parent, members=members, filter="data")
    (SOURCE / "tests" / "__init__.py").touch()  # some of them import their own folder by path


if __name__ == "__main__" and not AVAILABLE:
    fetch()
