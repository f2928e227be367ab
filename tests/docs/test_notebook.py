"""The notebook of examples/: the committed version, and its execution by a real kernel at a small size."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from pages.blocks import ROOT

NOTEBOOK = ROOT / "examples" / "search_your_images.ipynb"
SMALL = "TRAIN_SCENES, QUERY_SCENES, EPOCHS = 120, 40, 4"


def printed(cell) -> str:
    return "".join(output.text for output in cell.get("outputs", ()) if output.output_type == "stream")


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_with(notebook, text: str):
    (found,) = (cell for cell in code_cells(notebook) if text in cell.source)
    return found


def maps(notebook) -> dict[str, float]:
    lines = printed(cell_with(notebook, "at random:")).splitlines()
    return {name: float(value) for name, value in (re.split(r":\s+", line) for line in lines)}


def test_the_committed_notebook_has_outputs_and_no_machine_specific_data():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 400_000
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    text = json.dumps([cell.source for cell in notebook.cells] + [printed(cell) for cell in code_cells(notebook)])
    assert not re.findall(r"(?:/tmp|/home|/root|/work|/usr|site-packages)\b", text)
    figures = maps(notebook)
    assert min(figures["text to image"], figures["image to text"]) > 2 * figures["at random"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    for name in [name for name in os.environ if name.startswith(("HF_", "TRANSFORMERS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (position,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(position + 1, nbformat.v4.new_code_cell(SMALL))
    NotebookClient(notebook, timeout=550, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()

    figures = maps(notebook)
    # Four epochs over 120 scenes: better than random, if not by much.
    assert figures["text to image"] > 1.1 * figures["at random"] > 0.1
    ids = {path.stem for path in (tmp_path / "search-your-images" / "images" / "query").glob("*.png")}
    assert len(ids) == 40
    found = [line.split()[0] for line in printed(cell_with(notebook, "search(text=QUERY, k=6)\nfor")).splitlines()]
    assert len(found) == 6
    assert set(found) <= ids
    similar = printed(cell_with(notebook, "search(image=")).strip().split(", ")
    assert len(set(similar)) == 5
    assert set(similar) <= ids
    assert "40 images, 320 bytes of codes" in printed(cell_with(notebook, "codes.nbytes"))
    assert "Nothing was pushed" in printed(notebook.cells[-1])
    assert Path(tmp_path, "search-your-images", "model", "images.index").is_file()
