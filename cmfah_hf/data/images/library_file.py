"""The base of Pillow's image files that another library decodes."""

from typing import Any

from PIL import Image, ImageFile


class LibraryImageFile(ImageFile.ImageFile):
    """An image file whose size is read on opening, and which a library decodes on first access.

    A subclass defines `_header`, which returns the size in pixels, and `_decoded`. Errors of its library are `OSError`
    in `_decoded`; in `_header` they are `SyntaxError`, by which Pillow recognizes a file of another format.
    """

    _content: bytes | None

    def _open(self) -> None:
        self._content = self.fp.read() if self.fp is not None else b""
        self._size = self._header(self._content)
        self._mode = "RGB"  # until it is decoded
        self.tile = []

    def load(self) -> Any:
        if self._content is not None:
            image = self._decoded(self._content)
            self._content = None
            self._size, self._mode, self.im = image.size, image.mode, image.im
            if self.fp is not None and getattr(self, "_exclusive_fp", False):
                self.fp.close()
            self.fp = None
        return super().load()

    def _header(self, content: bytes) -> tuple[int, int]:
        raise NotImplementedError

    def _decoded(self, content: bytes) -> Image.Image:
        raise NotImplementedError
