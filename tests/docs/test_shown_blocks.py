"""Content that pages only show: rows of JSON, lists of files, the image at the top of the README."""

import importlib.util
import json
import re
import shutil

import numpy as np
import pytest
from pages.blocks import DOCS, PAGES, blocks
from PIL import Image

from cmfah_hf.serving import agents as serving_agents
from cmfah_hf.serving.protocol import DEFAULT_PORT
from cmfah_hf.space import agents as space_agents

SHOWN = [block for page in PAGES for block in blocks(page) if block.language in ("json", "text", "yaml")]

# Pages that show the configuration of an agent, and the addresses in it.
OF_AGENTS = {
    "docs/serving.md": f"http://127.0.0.1:{DEFAULT_PORT}{serving_agents.ENDPOINT}",
    "docs/space.md": f"http://127.0.0.1:7862{space_agents.ENDPOINT}",
}


def test_every_shown_block_is_checked():
    assert {(block.page, block.language) for block in SHOWN} == {
        ("README.md", "json"),
        ("docs/adding-a-method.md", "yaml"),  # tests/docs/test_adding_a_method.py trains with it
        ("docs/adding-an-encoder.md", "yaml"),  # tests/docs/test_pages_run.py trains with it
        ("docs/own-images.md", "json"),
        ("docs/own-images.md", "text"),
        ("docs/data.md", "json"),
        ("docs/data.md", "text"),  # checked after the page has run, tests/pages/checks.py
        ("docs/search.md", "text"),  # commands of a terminal; tests/cli/test_answers.py runs such
        ("docs/serving.md", "json"),
        ("docs/serving.md", "text"),  # an address of another machine; tests/serving/ has the token
        ("docs/space.md", "json"),
        ("docs/training.md", "yaml"),
        ("docs/evaluation.md", "yaml"),
        ("docs/evaluation.md", "text"),  # tests/evaluation/test_mteb.py looks up the tasks that its commands name
    }


@pytest.mark.parametrize(
    "block",
    [block for block in SHOWN if block.language == "json" and block.page not in OF_AGENTS],
    ids=lambda block: block.page.replace("/", "-"),
)
def test_metadata_rows_of_the_page_are_read(block, tmp_path, datasets_cache):
    from cmfah_hf.data import load_image_text

    row = json.loads(block.text)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.jsonl").write_text(block.text, encoding="utf-8")
    Image.new("RGB", (8, 8), "navy").save(tmp_path / "train" / row["file_name"])
    (read,) = load_image_text(tmp_path, split="train")
    if isinstance(row["text"], list):
        assert read["captions"] == row["text"]
        row["text"] = " ".join(row["text"])
    assert (read["text"], read.get("labels")) == (row["text"], row.get("labels"))


@pytest.mark.parametrize("page", OF_AGENTS)
def test_the_configuration_of_an_agent(page):
    (block,) = (block for block in SHOWN if (block.page, block.language) == (page, "json"))
    (server,) = json.loads(block.text)["mcpServers"].values()
    assert (server.pop("type"), server.pop("url")) == ("http", OF_AGENTS[page])
    assert server in ({}, {"headers": {"Authorization": "Bearer TOKEN"}})


def test_the_folder_of_the_page_is_read_as_two_splits(tmp_path, datasets_cache):
    from cmfah_hf.data import load_image_text

    (layout,) = (block for block in SHOWN if block.page == "docs/own-images.md" and block.language == "text")
    names = layout.text.split()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jpg"):
            Image.new("RGB", (8, 8), "navy").save(tmp_path / name)
            row = {"file_name": name.rsplit("/", 1)[1], "text": "sea", "labels": ["sea"]}
            (tmp_path / name).with_name("metadata.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert all((tmp_path / name).is_file() for name in names)
    read = load_image_text(tmp_path / "my-images")
    assert {split: len(rows) for split, rows in read.items()} == {"train": 1, "query": 1}


def test_the_extended_configuration_of_the_page(tmp_path):
    from cmfah_hf.training import bundled_configuration, parse_run

    (block,) = (block for block in SHOWN if (block.page, block.language) == ("docs/training.md", "yaml"))
    shutil.copy(bundled_configuration("base.yaml"), tmp_path)
    (tmp_path / "own.yaml").write_text(block.text, encoding="utf-8")
    run = parse_run(tmp_path / "own.yaml", ["--use_cpu"])
    assert (run.model["hash_bits"], run.training.num_train_epochs, run.model["image_pooling"]) == (32, 20, "max")


def test_the_grid_of_the_page(tmp_path):
    from cmfah_hf.experiments import read_grid

    (grid,) = (block for block in SHOWN if (block.page, block.language) == ("docs/evaluation.md", "yaml"))
    (tmp_path / "grid.yaml").write_text(grid.text, encoding="utf-8")
    assert len(read_grid(tmp_path / "grid.yaml").runs) == 2 * 3 * 5 * 2


@pytest.mark.slow
def test_the_image_of_the_readme_matches_its_script(tmp_path):
    spec = importlib.util.spec_from_file_location("draw_overview", DOCS / "draw_overview.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path / "overview.png")
    drawn, committed = (
        np.asarray(Image.open(path).convert("RGB"), np.float32)
        for path in (tmp_path / "overview.png", DOCS / "images" / "overview.png")
    )
    assert drawn.shape == committed.shape
    # Fonts depend on the machine; bits and images do not.
    assert np.abs(drawn - committed).mean() < 3
    readme = PAGES[0].read_text(encoding="utf-8")
    assert re.search(r"!\[[^\]]+\]\(docs/images/overview\.png\)", readme)
