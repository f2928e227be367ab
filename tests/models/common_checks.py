"""The checks that transformers runs on its own models, out of its source distribution.

They are no part of the installed package. `make test` fetches the source distribution of the installed version; here
its `tests` folder becomes the package `transformers_checks`, with stand-ins for those of its modules that are not
distributed and that have nothing to say about models like ours (text generation, exporters).
"""

import importlib
import os
import sys
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
    """One of transformers' test modules, such as `test_modeling_common`."""
    if "transformers_checks" not in sys.modules:
        package = types.ModuleType("transformers_checks")
        package.__path__ = [str(SOURCE / "tests")]
        sys.modules["transformers_checks"] = package
        stand_ins = {
            "exporters": {},
            "exporters.test_export": {"ExportTesterMixin": object},
            "generation": {},
            "generation.test_utils": {"GenerationTesterMixin": object},
            "utils": {},
            "utils.test_configuration_utils": {
                "config_common_kwargs": {"return_dict": False, "output_hidden_states": True, "dtype": "float16"}
            },
        }
        for name, attributes in stand_ins.items():
            stand_in = types.ModuleType(f"transformers_checks.{name}")
            stand_in.__path__ = []
            vars(stand_in).update(attributes)
            sys.modules[stand_in.__name__] = stand_in
    return importlib.import_module(f"transformers_checks.{module}")
