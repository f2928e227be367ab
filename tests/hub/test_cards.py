"""Heads of pushed cards: the values by which the Hub filters are those that it knows."""

import json
from importlib.resources import files

import pytest
import yaml
from datasets.utils.metadata import known_task_ids
from transformers.pipelines import PIPELINE_REGISTRY

from cmfah_hf.data import make_scenes, write_imagefolder
from cmfah_hf.data.dataset_card import size_category
from cmfah_hf.hub import push_dataset

SIZES = json.loads((files("datasets.utils") / "resources" / "size_categories.json").read_text(encoding="utf-8"))


def head_of(card: bytes) -> dict:
    return yaml.safe_load(card.split(b"---\n")[1])


def test_a_model_is_found_by_its_task_and_library(push_run, hub, trained):
    push_run(trained.folder)
    head = head_of(hub.files("org/model", "model")["README.md"])
    assert head["pipeline_tag"] in known_task_ids
    assert head["pipeline_tag"] in PIPELINE_REGISTRY.get_supported_tasks()  # `transformers` runs it
    assert head["library_name"] == "transformers"
    assert head["tags"][:4] == ["cross-modal-retrieval", "hashing", "image", "text"]
    assert len(set(head["tags"])) == len(head["tags"])


def test_a_data_set_is_found_by_its_tasks_and_size(here, hub, tmp_path):
    source = write_imagefolder({"train": make_scenes(3, image_size=32)}, tmp_path / "own")
    push_dataset(source, "org/own", token="hf_writer", progress=False)
    head = head_of(hub.files("org/own")["README.md"])
    assert set(head["task_categories"]) <= set(known_task_ids)
    assert head["size_categories"] == ["n<1K"]
    assert head["tags"] == ["cross-modal-retrieval", "image", "text"]


@pytest.mark.parametrize("power", range(16))
def test_sizes_are_those_that_the_hub_knows(power):
    assert {size_category(10**power), size_category(10**power - 1)} <= set(SIZES)


def test_sizes_have_their_bounds():
    assert [size_category(pairs) for pairs in (0, 999, 1_000, 9_999, 10_000, 10**6, 10**12 - 1, 10**12)] == [
        "n<1K", "n<1K", "1K<n<10K", "1K<n<10K", "10K<n<100K", "1M<n<10M", "100B<n<1T", "n>1T",
    ]  # fmt: skip
