"""XMP, the metadata of photo programs, in sidecars (`.xmp`) and inside images."""

import codecs
from xml.etree.ElementTree import Element

from cmfah_hf.data.from_folder.description import Description, as_date, cleaned, is_of_camera
from cmfah_hf.documents import parse_xml
from cmfah_hf.errors import DataError

_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_DC = "{http://purl.org/dc/elements/1.1/}"
_EXIF = "{http://ns.adobe.com/exif/1.0/}"
_PHOTOSHOP = "{http://ns.adobe.com/photoshop/1.0/}"
_XMP = "{http://ns.adobe.com/xap/1.0/}"
_LIGHTROOM = "{http://ns.adobe.com/lightroom/1.0/}"
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_DATES = (f"{_EXIF}DateTimeOriginal", f"{_PHOTOSHOP}DateCreated", f"{_XMP}CreateDate")


def parse_xmp(text: str | bytes, where: str, file_name: str = "") -> Description:
    """The caption (`dc:description`, else `dc:title`), keywords (`dc:subject`) and date of an XMP document.

    A caption in several languages is several captions, the default language first.

    Raises:
        DataError: If it is no XML, or defines entities.
    """
    if isinstance(text, bytes):
        is_wide = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = text.decode("utf-16", "replace") if is_wide else text.strip(b"\0 \r\n\t")  # packets are padded
    if isinstance(text, str):
        text = text.strip("\0 \r\n\t\ufeff")
    root = parse_xml(text, where, DataError)
    properties = list(root.iter(f"{_RDF}Description"))
    captions: tuple[str, ...] = ()
    for name in (f"{_DC}description", f"{_DC}title", f"{_PHOTOSHOP}Headline"):
        found = cleaned(_values(properties, name))
        captions = captions or tuple(text for text in found if not is_of_camera(text, file_name))
    keywords = cleaned(_values(properties, f"{_DC}subject"))
    if not keywords:  # a keyword with its groups, such as `animals|dog`
        keywords = cleaned(path.rpartition("|")[2] for path in _values(properties, f"{_LIGHTROOM}hierarchicalSubject"))
    dates = (as_date(text) for name in _DATES for text in _values(properties, name))
    return Description(captions, keywords, date=next(filter(None, dates), None))


def _values(properties: list[Element], name: str) -> list[str]:
    """The values of a property: of an attribute, an element, or the entries of a list; the default language first."""
    values: list[tuple[bool, str]] = []
    for part in properties:
        if name in part.attrib:
            values.append((False, part.attrib[name]))
        for element in part.findall(name):
            entries = list(element.iter(f"{_RDF}li")) or [element]
            values += [(own.get(_LANGUAGE) not in (None, "x-default"), "".join(own.itertext())) for own in entries]
    return [text for _, text in sorted(values, key=lambda value: value[0])]
