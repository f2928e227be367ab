"""The extras of this package that read further formats of images."""

import logging
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

logger = logging.getLogger(__name__)

# Libraries that import their parts on first use, with a function that needs them.
_PARTS = {"imagecodecs": "jpegxl_version"}


@dataclass(frozen=True)
class Extra:
    """An extra of this package that reads further formats.

    Attributes:
        name: The name of the extra, as in `pip install "cmfah-hf[name]"`.
        package: The package that it installs.
        module: The module of that package.
        endings: The endings of the formats, in lower case.
    """

    name: str
    package: str
    module: str
    endings: frozenset[str]

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f'pip install "cmfah-hf[{self.name}]"'


_RAW = "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf rw2 rwl sr2 srf srw x3f"


def _endings(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


EXTRAS = (
    Extra("heic", "pillow-heif", "pillow_heif", _endings("heic heif heics heifs hif")),
    Extra("avif", "pillow", "PIL", _endings("avif avifs")),  # in Pillow from 11.3
    Extra("jxl", "imagecodecs", "imagecodecs", _endings("jxl")),
    Extra("raw", "rawpy", "rawpy", _endings(_RAW)),
    Extra("svg", "resvg-py", "resvg_py", _endings("svg svgz")),
)


def extra_of(ending: str) -> Extra | None:
    """The extra that reads files with this ending, in lower case; `None` if none does."""
    return next((extra for extra in EXTRAS if ending in extra.endings), None)


@cache
def is_usable(module: str) -> bool:
    """Whether a library is installed and can be imported. One that is installed only is a warning, once."""
    if not find_spec(module):
        return False
    try:
        library = import_module(module)
        if module in _PARTS:
            getattr(library, _PARTS[module])()
    except ImportError as error:
        reason = " ".join(str(error).split())
        logger.warning(
            "%s is installed, but cannot be imported (%s), so the formats that it reads are left out; repair it, or "
            "uninstall it.", module, reason,
        )  # fmt: skip
        return False
    return True


def readers() -> str:
    """The libraries that read images, with their versions."""
    packages = dict.fromkeys(["pillow", *(extra.package for extra in EXTRAS if is_usable(extra.module))])
    return ", ".join(f"{package} {version(package)}" for package in packages)
