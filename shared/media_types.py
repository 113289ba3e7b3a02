"""The media types that files may have, and whether the content of a file is what its type says.

A library that guesses a type would not do: the question is not what a file is, but whether it may have the type that
its sender gives. Each type has its mark within the first bytes; text is UTF-8 from its beginning to its end.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Mapping

HEAD_BYTES = 1024
"""The mark of a type is within this number of bytes."""

_Check = Callable[[bytes], bool]


class WrongContent(ValueError):
    """The content of a file does not fit its type; the message has the reason."""


def _starts(*marks: bytes) -> _Check:
    return lambda head: head.startswith(marks)


def _in_container(outer: bytes, inner: bytes) -> _Check:
    """RIFF and FORM: the kind of the content stands after the length."""
    return lambda head: head.startswith(outer) and head[8:].startswith(inner)


def _frame(mask: int, *values: int) -> _Check:
    """Of audio without a container: the bits that each of its frames begins with."""
    return lambda head: len(head) > 1 and int.from_bytes(head[:2]) & mask in values


def _either(*checks: _Check) -> _Check:
    return lambda head: any(check(head) for check in checks)


def _box(*names: bytes) -> _Check:
    """Of MP4 and its relatives: the name of the first box, after its length."""
    return lambda head: head[4:8] in names


def _office(folder: bytes) -> _Check:
    """A ZIP archive whose first member is one of an office document's."""
    members = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"customXml/", folder)
    return lambda head: head.startswith(b"PK\x03\x04") and head[30:].startswith(members)


def _open_document(kind: str) -> _Check:
    """A ZIP archive whose first member is the type."""
    said = f"mimetypeapplication/vnd.oasis.opendocument.{kind}".encode()
    return lambda head: head.startswith(b"PK\x03\x04") and said in head


_MATROSKA = _starts(b"\x1a\x45\xdf\xa3")
_OLE = _starts(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
_MP4 = _box(b"ftyp")
_OPEN_XML = "application/vnd.openxmlformats-officedocument"
_OPEN_DOCUMENT = "application/vnd.oasis.opendocument"

_BINARY: Mapping[str, _Check] = {
    "image/png": _starts(b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": _starts(b"\xff\xd8\xff"),
    "image/gif": _starts(b"GIF87a", b"GIF89a"),
    "image/webp": _in_container(b"RIFF", b"WEBP"),
    "image/bmp": _starts(b"BM"),
    "image/tiff": _starts(b"II*\0", b"MM\0*"),
    "image/avif": _MP4,
    "image/heic": _MP4,
    "audio/wav": _in_container(b"RIFF", b"WAVE"),
    "audio/aiff": _in_container(b"FORM", b"AIF"),
    "audio/mpeg": _either(_starts(b"ID3"), _frame(0xFFE0, 0xFFE0)),
    "audio/aac": _either(_starts(b"ID3", b"ADIF"), _frame(0xFFF6, 0xFFF0)),
    "audio/flac": _starts(b"fLaC"),
    "audio/ogg": _starts(b"OggS"),
    "audio/mp4": _MP4,
    "audio/webm": _MATROSKA,
    "video/mp4": _MP4,
    "video/3gpp": _MP4,
    "video/quicktime": _box(b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"),
    "video/webm": _MATROSKA,
    "video/x-matroska": _MATROSKA,
    "video/mpeg": _either(_starts(b"\0\0\x01\xba", b"\0\0\x01\xb3"), lambda head: head[:189:188] == b"GG"),
    "video/x-flv": _starts(b"FLV\x01"),
    "video/x-ms-wmv": _starts(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    "application/pdf": lambda head: b"%PDF-" in head,
    "application/rtf": _starts(b"{\\rtf"),
    "application/msword": _OLE,
    "application/vnd.ms-excel": _OLE,
    "application/vnd.ms-powerpoint": _OLE,
    f"{_OPEN_XML}.wordprocessingml.document": _office(b"word/"),
    f"{_OPEN_XML}.spreadsheetml.sheet": _office(b"xl/"),
    f"{_OPEN_XML}.presentationml.presentation": _office(b"ppt/"),
    f"{_OPEN_DOCUMENT}.text": _open_document("text"),
    f"{_OPEN_DOCUMENT}.spreadsheet": _open_document("spreadsheet"),
    f"{_OPEN_DOCUMENT}.presentation": _open_document("presentation"),
}
_TEXT: Mapping[str, re.Pattern[str]] = {
    "text/plain": re.compile(""),
    "text/csv": re.compile(""),
    "text/markdown": re.compile(""),
    "application/json": re.compile(r'\s*[\[{"\-0-9tfn]'),
}
"""The beginnings of a text. No type is among them that a browser might run."""
_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "audio/mp3": "audio/mpeg",
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/x-aiff": "audio/aiff",
    "audio/x-flac": "audio/flac",
    "audio/x-m4a": "audio/mp4",
    "audio/m4a": "audio/mp4",
    "application/x-pdf": "application/pdf",
    "text/rtf": "application/rtf",
    "text/x-markdown": "text/markdown",
}
MEDIA_TYPES = frozenset(_BINARY) | frozenset(_TEXT)
"""The types that a file may have."""

TYPES_BY_SUFFIX: Mapping[str, str] = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "avif": "image/avif",
    "heic": "image/heic",
    "wav": "audio/wav",
    "aiff": "audio/aiff",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "m4a": "audio/mp4",
    "mp4": "video/mp4",
    "3gp": "video/3gpp",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mkv": "video/x-matroska",
    "mpg": "video/mpeg",
    "mpeg": "video/mpeg",
    "flv": "video/x-flv",
    "wmv": "video/x-ms-wmv",
    "pdf": "application/pdf",
    "rtf": "application/rtf",
    "doc": "application/msword",
    "xls": "application/vnd.ms-excel",
    "ppt": "application/vnd.ms-powerpoint",
    "docx": f"{_OPEN_XML}.wordprocessingml.document",
    "xlsx": f"{_OPEN_XML}.spreadsheetml.sheet",
    "pptx": f"{_OPEN_XML}.presentationml.presentation",
    "odt": f"{_OPEN_DOCUMENT}.text",
    "ods": f"{_OPEN_DOCUMENT}.spreadsheet",
    "odp": f"{_OPEN_DOCUMENT}.presentation",
    "txt": "text/plain",
    "csv": "text/csv",
    "md": "text/markdown",
    "json": "application/json",
}
"""`mimetypes` would say what the machine's own files say, which differs from one to the next."""


def type_of_name(filename: str | None) -> str | None:
    """Tell the type of a file by the end of its name; None where that says none of `MEDIA_TYPES`."""
    return TYPES_BY_SUFFIX.get((filename or "").rpartition(".")[2].lower())


def plain(media_type: str) -> str:
    """Write a media type in its one spelling, without its parameters."""
    bare = media_type.partition(";")[0].strip().lower()
    return _ALIASES.get(bare, bare)


def matches(media_type: str, patterns: Collection[str]) -> bool:
    """Tell whether one of the patterns is this type, `<its first part>/*`, or `*/*`."""
    return not {media_type, f"{media_type.partition('/')[0]}/*", "*/*"}.isdisjoint(patterns)


class Sniffer:
    """Checks a file while it comes, and raises at once if it does not fit its type."""

    def __init__(self, media_type: str) -> None:
        """Take one of `MEDIA_TYPES`."""
        self._media_type = media_type
        self._head = b""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")() if media_type in _TEXT else None
        self._looked = False

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes.

        Raises:
            WrongContent: they are not those of this type.
        """
        if self._decoder is not None:
            self._decode(self._decoder, piece, final=False)
        if not self._looked:
            self._head += piece[: HEAD_BYTES - len(self._head)]
            if len(self._head) == HEAD_BYTES:
                self._look()

    def end(self) -> None:
        """See whether it is whole.

        Raises:
            WrongContent: it is empty, or not of this type.
        """
        if not self._head:
            raise WrongContent("The file is empty")
        if self._decoder is not None:
            self._decode(self._decoder, b"", final=True)
        if not self._looked:
            self._look()

    def _decode(self, decoder: codecs.IncrementalDecoder, piece: bytes, *, final: bool) -> None:
        try:
            text = decoder.decode(piece, final)
        except UnicodeDecodeError:
            raise WrongContent(f"The content is not UTF-8, as {self._media_type} must be") from None
        if "\0" in text:
            raise WrongContent(f"The content holds U+0000, which no {self._media_type} has")

    def _look(self) -> None:
        self._looked = True
        check = _BINARY.get(self._media_type)
        if check is None:
            fits = _TEXT[self._media_type].match(self._head.decode("utf-8-sig", "ignore")) is not None
        else:
            fits = check(self._head)
        if not fits:
            raise WrongContent(f"The content is not {self._media_type}")
