"""Declarative checks of configuration values: ranges and choices, each refused in one line that names the setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol


class Check(Protocol):
    """A condition on one value."""

    def fits(self, value: Any) -> bool: ...

    @property
    def advice(self) -> str: ...


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `below`, exclusive. `advice` continues the sentence "hash_bits is 12; ..."."""

    least: float
    below: float = inf
    advice: str = "give 1 or more"

    def fits(self, value: Any) -> bool:
        return self.least <= value < self.below


@dataclass(frozen=True)
class Choice:
    """One of several names."""

    names: Sequence[str]

    def fits(self, value: Any) -> bool:
        return value in self.names

    @property
    def advice(self) -> str:
        return f"choose one of {', '.join(self.names)}"


def check_values(settings: Any, checks: Mapping[str, Check]) -> None:
    """Checks attributes by their names.

    Raises:
        ValueError: At the first value that does not fit.
    """
    for name, check in checks.items():
        value = getattr(settings, name)
        if not check.fits(value):
            raise ValueError(f"{name} is {value!r}; {check.advice}.")
