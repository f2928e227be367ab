"""The registry of training methods, by name."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from cmfah_hf.methods.base import Objective

ObjectiveType = TypeVar("ObjectiveType", bound="type[Objective]")

# Methods of this package load on first use, from these modules.
_DEEP = ("dcmh", "djsrh", "ugach", "ucch", "dchmt", "acmr", "ssah", "agah")
SHALLOW_METHODS = ("cca-itq", "cmfh", "cmssh", "scm", "scratch", "seph")
_MODULES = {
    **{name: f"cmfah_hf.methods.{name}" for name in ("cmfah", "scahn")},
    **{name: f"cmfah_hf.methods.deep.{name}" for name in _DEEP},
    **dict.fromkeys(SHALLOW_METHODS, "cmfah_hf.methods.shallow.objectives"),
}
_OBJECTIVES: "dict[str, type[Objective]]" = {}


def register_method(name: str) -> Callable[[ObjectiveType], ObjectiveType]:
    """A decorator that registers a subclass of `Objective` as a training method.

    Args:
        name: The name of the method, as in `cmfah train --method NAME`.

    Raises:
        ValueError: If another class has the name.

    Example:

    ```python
    from cmfah_hf.methods import Objective, register_method


    @register_method("my-method")
    class MyObjective(Objective): ...
    ```"""

    def register(objective: ObjectiveType) -> ObjectiveType:
        other = _OBJECTIVES.get(name)
        is_new = other is None and (name not in _MODULES or _MODULES[name] == objective.__module__)
        # A class that is defined again, as in a notebook, replaces the earlier one.
        if not is_new and (other is None or other.__qualname__ != objective.__qualname__):
            raise ValueError(f"There is another method {name!r}; choose another name.")
        objective.name = name
        _OBJECTIVES[name] = objective
        return objective

    return register


def registered_methods() -> list[str]:
    """The names of all methods."""
    return list(dict.fromkeys([*_MODULES, *_OBJECTIVES]))


def objective_class(name: str) -> "type[Objective]":
    """The objective of a method.

    Raises:
        ValueError: If no method has the name.
    """
    if name not in _OBJECTIVES:
        if name not in _MODULES:
            raise ValueError(
                f"There is no method {str(name)[:80]!r} but {', '.join(registered_methods())}; import the module that "
                "registers it."
            )
        import_module(_MODULES[name])
    return _OBJECTIVES[name]
