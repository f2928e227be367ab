"""The sources of the static page, and its parts from npm, which are installed once into a cache."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from cmfah_hf.atomic import ANYTHING, atomic_folder
from cmfah_hf.errors import CMFAHError

# Where the page has its parts, by the files of their packages. `.js`, because some servers know no `.mjs`.
RUNTIME = {
    "npm/onnxruntime.js": "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "npm/onnxruntime.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
}
TOKENIZERS = {"npm/tokenizers.js": "@huggingface/tokenizers/dist/tokenizers.min.mjs"}
LICENSES = "npm/licenses.txt"

_PACKAGES = ("package.json", "package-lock.json")
_COMMAND = ("npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
_MOST_SECONDS = 600


def page_sources() -> Path:
    """The folder of the page's sources: in the package if installed, next to it in a checkout."""
    package = Path(__file__).parents[2]
    for folder in (package / "browser_files", package.parent / "spaces" / "cmfah-browser"):
        if (folder / "index.html").is_file():
            return folder
    raise CMFAHError("The sources of the static page are missing; install the package again.")


def page_files() -> dict[str, Path]:
    """The page's own files that are published as they are, by path in its folder."""
    folder = page_sources()
    return {"offline.js": folder / "offline.js"} | {f"page/{path.name}": path for path in sorted(_page(folder))}


def _page(folder: Path) -> Iterator[Path]:
    return (path for path in (folder / "page").iterdir() if path.suffix in (".js", ".css", ".svg"))


def npm_parts(with_tokenizers: bool) -> dict[str, Path]:
    """The page's parts from npm, by path in its folder; installed if the cache has none of this lock file.

    Raises:
        CMFAHError: If npm is missing, or cannot install them.
    """
    from huggingface_hub import cached_assets_path

    sources = page_sources()
    digest = sha256(b"".join((sources / name).read_bytes() for name in _PACKAGES)).hexdigest()
    folder = cached_assets_path("cmfah_hf", namespace="npm", subfolder="browser") / digest[:32]
    if not folder.is_dir():
        _install(sources, folder)
    wanted = [*RUNTIME, *(TOKENIZERS if with_tokenizers else ()), LICENSES]
    return {name: folder / Path(name).name for name in wanted}


def _install(sources: Path, target: Path) -> None:
    npm = shutil.which(_COMMAND[0])
    if npm is None:
        raise CMFAHError(
            "The page runs its model with ONNX Runtime from npm, and npm is not installed; install Node.js, which has "
            "it, and export again."
        )
    with tempfile.TemporaryDirectory(prefix="cmfah-npm-") as place:
        for name in _PACKAGES:
            shutil.copyfile(sources / name, Path(place, name))
        try:
            done = subprocess.run(
                [npm, *_COMMAND[1:]], cwd=place, capture_output=True, text=True, timeout=_MOST_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise CMFAHError(
                f"npm did not install the page's parts within {_MOST_SECONDS} seconds; try again."
            ) from error
        if done.returncode:
            raise CMFAHError(
                f"npm could not install the page's parts ({_reason(done.stderr or done.stdout)}); connect to the "
                "network, or set npm's registry, and export again."
            )
        modules = Path(place, "node_modules")
        with atomic_folder(target, CMFAHError, ANYTHING) as folder:
            for name, inside in {**RUNTIME, **TOKENIZERS}.items():
                shutil.copyfile(modules / inside, folder / Path(name).name)
            (folder / Path(LICENSES).name).write_text(_licenses(modules), encoding="utf-8")


def _reason(output: str) -> str:
    """The first lines of npm's errors, without its prefixes and without its log file."""
    lines = [line.removeprefix("npm error").strip() for line in output.splitlines()]
    told = [line for line in lines if line and "complete log" not in line and not line.startswith("/")]
    return "; ".join(told[:2])[:200].rstrip(".") or "it gave no reason"


def _licenses(modules: Path) -> str:
    """Name, version and license of each published package, with the text of its license if it has one."""
    parts = []
    for inside in {**RUNTIME, **TOKENIZERS}.values():
        name = "/".join(Path(inside).parts[: 2 if inside.startswith("@") else 1])
        about = json.loads((modules / name / "package.json").read_text(encoding="utf-8"))
        text = next((path.read_text(encoding="utf-8") for path in sorted((modules / name).glob("LICENSE*"))), "")
        part = f"{name} {about['version']}, {about.get('license', 'license not named')}\n{text}".rstrip()
        if part not in parts:
            parts.append(part)
    return "\n\n".join(parts) + "\n"
