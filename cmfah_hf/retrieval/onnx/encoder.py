"""`OnnxEncoder`: the towers of a model in ONNX Runtime, on the CPU. Without torch and transformers.

Shape suffixes: N items, K hash bits.
"""

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from cmfah_hf.errors import CheckpointError, CMFAHError, QueryError
from cmfah_hf.models.text_reading import TextReader
from cmfah_hf.retrieval.encoder import ImageTextEncoder
from cmfah_hf.retrieval.image_options import ImageOptions
from cmfah_hf.retrieval.onnx.files import INPUTS, OUTPUTS, OnnxFiles
from cmfah_hf.retrieval.onnx.pixels import NumpyPixels
from cmfah_hf.retrieval.onnx.texts import OnnxTextReader
from cmfah_hf.retrieval.preparation import ImagePreparation

if TYPE_CHECKING:
    import onnxruntime

    from cmfah_hf.expansion import GraphExpander


class OnnxEncoder(ImageTextEncoder):
    """Encodes images and texts by the ONNX files of a model. A file is opened when its tower is first used.

    Args:
        files: The description of the files.
        find: The path of the file of a tower, `"vision"` or `"text"`, checked against its description.
        reader: How the model reads texts.
        expander: The graph that expanded the model's training texts; it expands queries too.
        name: The folder or Hub id of the model.
        revision: The commit on the Hub.
        image_options: Options of reading and encoding images.

    Raises:
        CheckpointError: If ONNX Runtime is not installed, or images are prepared in a way that is not known here.
        QueryError: If `image_options.half` is set.
    """

    backend = "onnx"

    def __init__(
        self,
        files: OnnxFiles,
        find: Callable[[str], Path],
        reader: OnnxTextReader,
        expander: "GraphExpander | None" = None,
        name: str = "",
        revision: str | None = None,
        image_options: ImageOptions | None = None,
    ):
        self.files, self.expander = files, expander
        self.image_options = image_options or ImageOptions()
        if self.image_options.half:
            raise QueryError("half is for PyTorch; with ONNX files, choose precision='fp16' (--precision fp16).")
        require_onnxruntime()
        self._find, self._reader, self._name, self._revision = find, reader, name, revision
        self._pixels = NumpyPixels(files.image_processor)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._opening = Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def revision(self) -> str | None:
        return self._revision

    @property
    def hash_bits(self) -> int:
        return self.files.hash_bits

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model that the files were made from, whatever their precision."""
        return self.files.fingerprint

    @property
    def reader(self) -> TextReader:
        return self._reader

    @property
    def prepare(self) -> Callable[..., Any]:
        return ImagePreparation(self._pixels, self.image_options).prepared

    def encode_pixels(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._codes("vision", pixel_values)

    def encode_expanded(self, texts: list[str]) -> np.ndarray:
        return self._codes("text", *self._reader.tokens(texts)) if texts else self._no_codes()

    def _codes(self, tower: str, *inputs: np.ndarray) -> np.ndarray:
        feed = dict(zip(INPUTS[tower], inputs, strict=True))
        codes_NK = self._session(tower).run([OUTPUTS[tower]], feed)[0]
        if not isinstance(codes_NK, np.ndarray) or codes_NK.shape != (len(inputs[0]), self.hash_bits):
            raise CheckpointError(f"{self._name}: its ONNX files make no codes of {self.hash_bits} bits.")
        return codes_NK

    def _session(self, tower: str) -> "onnxruntime.InferenceSession":
        with self._opening:
            if tower not in self._sessions:
                self._sessions[tower] = _opened(self._find(tower))
            return self._sessions[tower]


def require_onnxruntime() -> None:
    """Raises a `CMFAHError` that names the extra if ONNX Runtime is not installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise CMFAHError("backend='onnx' needs ONNX Runtime; pip install 'cmfah-hf[onnx]'.") from error


def _opened(path: Path) -> "onnxruntime.InferenceSession":
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors share no other type
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: ONNX Runtime cannot open it ({reason}); make it again.") from error
