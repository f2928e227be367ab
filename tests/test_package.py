"""The wheel: every module, and the data files of the commands, where they look for them."""

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, bytes]:
    """The contents of a wheel's files by their paths."""
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def below(folder: str) -> dict[str, bytes]:
    root = ROOT / folder
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("folder", "place"),
    [("cmfah_hf", ""), ("hub_configs", "hub_configs/"), ("spaces/cmfah-search", "space_files/")],
)
def test_the_wheel_contains_every_file(installed, folder, place):
    expected = below(folder)
    assert len(expected) > 5
    assert {name: installed.get(f"cmfah_hf/{place}{name}") for name in expected} == expected


def test_the_wheel_contains_nothing_else(installed):
    tops = {name.partition("/")[0] for name in installed}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cmfah_hf"}
