"""Fixtures of the mutation tests: the number of inputs, and the canary that no reader may touch."""

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from fuzz.harness import Canary, Fuzzer, encodable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "fuzz" in item.path.parts:
            item.add_marker(pytest.mark.fuzz)


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(content, "PNG")
    canary = Canary(tmp_path_factory.mktemp("outside"), content.getvalue())
    yield canary
    canary.close()


@pytest.fixture
def fuzzer(
    request: pytest.FixtureRequest, canary: Canary, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Fuzzer]:
    """Makes a `Fuzzer` with a share of all inputs, such as `fuzzer(share=0.05)`."""

    def make(share: float, limit_s: float = 10.0) -> Fuzzer:
        canary.touched()
        count = max(1, round(share * request.config.getoption("--fuzz-inputs")))
        return Fuzzer(count, canary, tmp_path_factory.mktemp("at-work") / "input", limit_s)

    return make


@pytest.fixture(autouse=True)
def reports_without_surrogates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone surrogate in a captured log line would crash the test process when it is reported."""
    handler = request.config.pluginmanager.get_plugin("logging-plugin").report_handler
    monkeypatch.setattr(handler, "format", lambda record, plain=handler.format: encodable(plain(record)))
