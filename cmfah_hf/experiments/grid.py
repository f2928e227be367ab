"""Experiment grids: data sets x methods x variants x code lengths x protocols x seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cmfah_hf.errors import CMFAHError
from cmfah_hf.training import CMFAHTrainingArguments
from cmfah_hf.training.settings.arguments import DataArguments

# The value of `reference`: real-valued classifiers of the features instead of a training.
LINEAR = "linear"


@dataclass(frozen=True)
class GridRun:
    """One run of a grid.

    Attributes:
        data, method, variant: Their names in the grid.
        bits: The code length; None for a reference without codes.
        protocol: `"seen"` or `"unseen"`, see `DataArguments`.
        seed: The seed of the training.
        title: The name of method and variant in tables.
        config: The configuration for `cmfah train`.
        settings: Settings that take precedence over the configuration.
        encodings: `"single"`, and `"paired"` if queries are also encoded with their partners.
        reference: None, or `LINEAR` instead of a training.
    """

    data: str
    method: str
    variant: str
    bits: int | None
    protocol: str
    seed: int
    title: str
    config: Path
    settings: Mapping[str, Any]
    encodings: tuple[str, ...] = ("single",)
    reference: str | None = None

    @property
    def name(self) -> str:
        """The folder of the run below the grid's output; `--only` matches it."""
        size = "real" if self.bits is None else f"{self.bits}-bits"
        return f"{self.data}/{self.method}/{self.variant}/{size}/{self.protocol}/seed-{self.seed}"

    def arguments(self) -> list[str]:
        """The settings as arguments of `cmfah train`."""
        return as_arguments(self.settings)


@dataclass(frozen=True)
class Grid:
    """The title of a grid and its runs, in the order of its file."""

    title: str
    runs: tuple[GridRun, ...]

    def only(self, patterns: Sequence[str]) -> list[GridRun]:
        """The runs whose names match one of the patterns, such as `*/scahn/*/seed-0`; all runs without patterns.

        Raises:
            CMFAHError: If a pattern matches no run.
        """
        for pattern in patterns:
            if not any(fnmatchcase(run.name, pattern) for run in self.runs):
                raise CMFAHError(f"No run matches {pattern!r}; a run is named like {self.runs[0].name}.")
        return [run for run in self.runs if not patterns or any(fnmatchcase(run.name, one) for one in patterns)]


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as arguments of `cmfah train`: `{"hash_bits": 32}` becomes `["--hash_bits", "32"]`."""
    words_apart = {field.name for kind in (DataArguments, CMFAHTrainingArguments) for field in fields(kind)}
    arguments: list[str] = []
    for name, value in settings.items():
        if isinstance(value, list) and name in words_apart:
            arguments += [f"--{name}", *map(str, value)]
        elif isinstance(value, (list, dict, bool)):
            arguments += [f"--{name}", json.dumps(value)]
        else:
            arguments += [f"--{name}", "null" if value is None else str(value)]
    return arguments
