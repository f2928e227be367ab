"""The command `hf`: a run's folder is uploaded and downloaded as any other, and gives the same codes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmfah_hf.data.scenes import draw_scene
from cmfah_hf.retrieval import CrossMediaRetriever

ENCODES = """
import sys
import numpy as np
from PIL import Image
from cmfah_hf.retrieval import CrossMediaRetriever
retriever = CrossMediaRetriever.from_pretrained(sys.argv[1], device="cpu")
images = [Image.open(path) for path in sys.argv[3:]]
np.savez(sys.argv[2], images=retriever.encode_images(images), texts=retriever.encode_texts(["boat sun", "tree"]))
"""


@pytest.mark.slow
def test_a_run_that_was_uploaded_and_downloaded_gives_the_same_codes(hub, trained, tmp_path):
    environment = hub.environment(tmp_path / "home", "hf_writer") | {"OMP_NUM_THREADS": "1"}

    def run(*words: str | Path) -> None:
        done = subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr

    hf = Path(sys.executable).with_name("hf")
    run(hf, "upload", "org/run", trained.folder, ".", "--exclude", "checkpoint-*/*")
    pulled = tmp_path / "pulled"
    run(hf, "download", "org/run", "--local-dir", pulled)
    assert (pulled / "model.safetensors").read_bytes() == (trained.folder / "model.safetensors").read_bytes()
    assert not list(pulled.glob("checkpoint-*"))

    images = [draw_scene(number, image_size=48).image for number in range(4)]
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    retriever = CrossMediaRetriever.from_pretrained(trained.folder, device="cpu")
    expected = {
        "images": retriever.encode_images([Image.open(path) for path in paths]),
        "texts": retriever.encode_texts(["boat sun", "tree"]),
    }
    run(sys.executable, "-c", ENCODES, pulled, tmp_path / "codes.npz", *paths)
    with np.load(tmp_path / "codes.npz") as found:
        for name, values in expected.items():
            assert (np.sign(found[name]) == np.sign(values)).all()
            np.testing.assert_allclose(found[name], values, atol=1e-6)
