"""The wheel: every module, the data files of the commands, and an environment that has nothing else."""

import subprocess
import sys
import tarfile
import textwrap
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    from hatchling.builders.wheel import WheelBuilder

    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return Path(path)


@pytest.fixture(scope="module")
def installed(wheel) -> dict[str, bytes]:
    """The contents of a wheel's files by their paths."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def below(folder: str) -> dict[str, bytes]:
    root = ROOT / folder
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("folder", "place"),
    [
        ("cmfah_hf", ""),
        ("hub_configs", "hub_configs/"),
        ("spaces/cmfah-search", "space_files/"),
        ("spaces/cmfah-browser", "browser_files/"),
    ],
)
def test_the_wheel_contains_every_file(installed, folder, place):
    expected = below(folder)
    assert len(expected) > 5
    assert {name: installed.get(f"cmfah_hf/{place}{name}") for name in expected} == expected


def test_the_wheel_contains_nothing_else(installed):
    tops = {name.partition("/")[0] for name in installed}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cmfah_hf"}


@pytest.fixture(scope="module")
def source_distribution(tmp_path_factory) -> Path:
    from hatchling.builders.sdist import SdistBuilder

    (path,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("sdist")), versions=["standard"])
    return Path(path)


def test_both_distributions_pass_the_checks_of_the_index(wheel, source_distribution):
    for command in (
        ["twine", "check", "--strict", str(wheel), str(source_distribution)],
        ["check_wheel_contents", str(wheel)],
    ):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_source_distribution_builds_the_same_wheel_and_has_nothing_else(source_distribution, installed, tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    with tarfile.open(source_distribution) as archive:
        archive.extractall(tmp_path, filter="data")
        sizes = {member.name.partition("/")[2]: member.size for member in archive.getmembers() if member.isfile()}
    (folder,) = tmp_path.iterdir()
    (path,) = WheelBuilder(str(folder)).build(directory=str(tmp_path / "built"), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == installed
    assert max(sizes.values()) < 2 * 2**20
    assert sum(sizes.values()) < 20 * 2**20
    assert not [
        name for name in sizes if any(part.startswith(".") for part in Path(name).parts) and name != ".gitignore"
    ]
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if tracked.returncode == 0:  # not in an unpacked source distribution
        ignored = ["git", "-C", str(ROOT), "ls-files", "-z", "--others", "--exclude-standard"]
        new = subprocess.run(ignored, capture_output=True, text=True, check=True).stdout
        assert sizes.keys() - {"PKG-INFO"} <= {*tracked.stdout.split("\0"), *new.split("\0")}


def required(name: str, extras: tuple[str, ...] = (), found: dict[str, set[str]] | None = None) -> dict[str, set[str]]:
    """A distribution and all that it requires here, with the extras that are asked of each."""
    found = {} if found is None else found
    before = found.get(name, None)
    if before is not None and set(extras) <= before:
        return found
    asked = found.setdefault(name, set())
    asked.update(extras)
    for line in distribution(name).requires or ():
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *asked)):
            required(canonicalize_name(one.name), tuple(one.extras), found)
    return found


@pytest.fixture
def environment_of_the_wheel(wheel, tmp_path) -> Path:
    """A virtual environment with the wheel and, as links, the packages that it requires. No others can be imported."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in required("cmfah-hf"):
        if name != "cmfah-hf":
            own = distribution(name)
            for top in {file.parts[0] for file in own.files or ()} - {"..", "__pycache__"}:
                link = packages / top
                if not link.is_symlink():
                    link.symlink_to(own.locate_file(top))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True, timeout=120)
    return folder


@pytest.mark.slow
def test_the_demo_and_the_space_run_where_only_the_wheel_is_installed(environment_of_the_wheel, environment, tmp_path):
    """As `uvx --from cmfah-hf cmfah demo` does, but for the download."""
    programs, work = environment_of_the_wheel / "bin", tmp_path / "work"
    work.mkdir()
    del environment["PYTHONPATH"]
    run = {"cwd": work, "env": environment, "capture_output": True, "text": True, "timeout": 240}
    shown = subprocess.run([programs / "cmfah", "configs"], **run)
    assert "cmfah-scenes" in shown.stdout, shown.stderr
    code = """
        import cmfah_hf
        from cmfah_hf.cli import main
        from cmfah_hf.space import Engine, SpaceSettings, app
        from cmfah_hf.space.settings import bundled_space
        try:
            main(["demo", "--train-scenes", "60", "--query-scenes", "20", "--epochs", "1"])
        except SystemExit as left:
            assert not left.code
        folder = bundled_space()
        engine = Engine(SpaceSettings(limit=8), folder)
        print(cmfah_hf.__file__, folder, len(engine.search("boat", k=3).rankings["images"]["aqd"].rows), sep="\\n")
    """
    ran = subprocess.run([programs / "python", "-c", textwrap.dedent(code)], **run)
    assert ran.returncode == 0, ran.stderr
    assert (work / "demo" / "model" / "model.safetensors").is_file()
    package, space, found = ran.stdout.splitlines()[-3:]
    assert Path(package).is_relative_to(environment_of_the_wheel)
    assert Path(space).is_relative_to(environment_of_the_wheel)
    assert found == "3"
