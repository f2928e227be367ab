"""Raw images of cameras, developed by rawpy (LibRaw)."""

import io
from pathlib import PurePath

from PIL import Image, TiffImagePlugin

from cmfah_hf.data.images.extras import EXTRAS
from cmfah_hf.data.images.library_file import LibraryImageFile

_TIFF = (b"II*\0", b"MM\0*")
# ORF, RW2, RAF, X3F and MRW; CRW and CR3 are recognized by other bytes.
_OWN_HEADS = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM")
_NEW_SUBFILE_TYPE, _MAKE, _DNG_VERSION = 254, 271, 50706
_PREVIEW = 1  # a reduced version of another image of the file


def may_be_raw(prefix: bytes) -> bool:
    """Whether a file with these first bytes may be a raw image."""
    return prefix.startswith(_TIFF) or has_raw_head(prefix)


def has_raw_head(prefix: bytes) -> bool:
    """Whether a file with these first bytes is a raw image, and no TIFF file."""
    return prefix.startswith(_OWN_HEADS) or prefix[6:14] == b"HEAPCCDR" or prefix[4:12] == b"ftypcrx "


class RawImageFile(LibraryImageFile):
    """A raw image, developed at half its size with the camera's white balance, and turned upright."""

    format = "RAW"
    format_description = "raw image of a camera"

    def _header(self, content: bytes) -> tuple[int, int]:
        import rawpy

        if content.startswith(_TIFF) and not (self._has_raw_name() or _is_raw_tiff(content)):
            raise SyntaxError("a TIFF file, but no raw image")
        try:
            with rawpy.imread(io.BytesIO(content)) as raw:
                return raw.sizes.raw_width, raw.sizes.raw_height
        except rawpy.LibRawError as error:
            raise SyntaxError(_reason(error)) from error

    def _decoded(self, content: bytes) -> Image.Image:
        import rawpy

        try:
            with rawpy.imread(io.BytesIO(content)) as raw:
                return Image.fromarray(raw.postprocess(half_size=True, use_camera_wb=True))
        except rawpy.LibRawError as error:
            raise OSError(_reason(error)) from error

    def _has_raw_name(self) -> bool:
        name = self.filename or getattr(self.fp, "name", "")
        name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        return any(PurePath(name).suffix.lower() in extra.endings for extra in EXTRAS if extra.name == "raw")


def _is_raw_tiff(content: bytes) -> bool:
    """Whether a TIFF file is raw: DNG, CR2, or a camera's preview followed by the image."""
    if content[8:10] == b"CR":
        return True
    tags = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
    file = io.BytesIO(content)
    file.seek(tags.next)
    tags.load(file)
    return _DNG_VERSION in tags or (_MAKE in tags and tags.get(_NEW_SUBFILE_TYPE) == _PREVIEW)


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
