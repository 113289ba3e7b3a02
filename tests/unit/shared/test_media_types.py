"""A file is what its type says, or it is refused."""

from __future__ import annotations

import io
import zipfile

import pytest

from agent_relay.shared.media_types import (
    HEAD_BYTES,
    MEDIA_TYPES,
    TYPES_BY_SUFFIX,
    Sniffer,
    WrongContent,
    matches,
    plain,
    type_of_name,
)

WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
TEXT_OF_OFFICE = "application/vnd.oasis.opendocument.text"


def archive(*members: str, content: str = "") -> bytes:
    """Make a ZIP archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as written:
        for member in members:
            written.writestr(member, content)
    return made.getvalue()


MARKS = {
    "image/png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "image/jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "image/gif": b"GIF89a\x01\0",
    "image/webp": b"RIFF\x24\0\0\0WEBPVP8 ",
    "audio/wav": b"RIFF\x24\0\0\0WAVEfmt ",
    "audio/mpeg": b"\xff\xfb\x90\x64\0",
    "audio/ogg": b"OggS\0\x02",
    "video/mp4": b"\0\0\0\x20ftypisom",
    "video/webm": b"\x1a\x45\xdf\xa3\x9f\x42",
    "application/pdf": b"%PDF-1.7\n",
    WORD: archive("[Content_Types].xml", "word/document.xml"),
    TEXT_OF_OFFICE: archive("mimetype", "content.xml", content=TEXT_OF_OFFICE),
    "text/plain": "Grüße".encode(),
    "text/csv": b"a,b\n1,2\n",
    "application/json": b'\xef\xbb\xbf {"a": 1}',
}
TEXTS = {"text/plain", "text/csv", "application/json"}


def sniffed(media_type: str, content: bytes, step: int = 1 << 20) -> str | None:
    """Look at a content in pieces; returns why it is refused."""
    sniffer = Sniffer(media_type)
    try:
        for start in range(0, len(content), step):
            sniffer.feed(content[start : start + step])
        sniffer.end()
    except WrongContent as wrong:
        return str(wrong)
    return None


@pytest.mark.parametrize("step", [1, 3, HEAD_BYTES, 1 << 20])
@pytest.mark.parametrize("media_type", MARKS)
def test_what_a_file_says_is_believed_if_its_content_says_so_too(media_type: str, step: int) -> None:
    assert media_type in MEDIA_TYPES
    assert sniffed(media_type, MARKS[media_type] + b" " * 2 * HEAD_BYTES, step) is None


@pytest.mark.parametrize("media_type", MARKS)
def test_the_content_of_every_other_type_is_refused(media_type: str) -> None:
    any_text = {"text/plain", "text/csv"}
    for other, content in MARKS.items():
        is_text_too = media_type in any_text and (content.isascii() or other in TEXTS)
        if other != media_type and not is_text_too:
            assert sniffed(media_type, content) is not None, other


@pytest.mark.parametrize(
    ("media_type", "content", "why"),
    [
        ("application/pdf", b"", "empty"),
        ("text/plain", b"", "empty"),
        ("text/plain", b"\xff\xfea\0", "UTF-8"),
        ("text/plain", b"a" * 5000 + b"\xc3", "UTF-8"),
        ("text/markdown", b"a" * 5000 + b"\0", "U+0000"),
        ("application/json", b"<html>", "application/json"),
        ("application/pdf", b" " * HEAD_BYTES + b"%PDF-1.7", "application/pdf"),
        (WORD, archive("evil.class"), "wordprocessingml"),
        (WORD, archive("xl/workbook.xml"), "wordprocessingml"),
        ("audio/mpeg", b"\xff", "audio/mpeg"),
    ],
)
def test_what_is_refused_and_why(media_type: str, content: bytes, why: str) -> None:
    assert why in str(sniffed(media_type, content))


def test_a_file_is_refused_at_the_byte_that_shows_it() -> None:
    sniffer = Sniffer("image/png")
    with pytest.raises(WrongContent):
        sniffer.feed(b"x" * HEAD_BYTES)


def test_nothing_that_a_browser_runs_may_be_a_file() -> None:
    assert (
        not {"text/html", "image/svg+xml", "application/xhtml+xml", "text/javascript", "application/xml"} & MEDIA_TYPES
    )


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Image/JPG", "image/jpeg"),
        ("text/plain; charset=utf-8", "text/plain"),
        (" audio/mp3 ;x=y", "audio/mpeg"),
        ("", ""),
    ],
)
def test_a_type_has_one_spelling(said: str, meant: str) -> None:
    assert plain(said) == meant


def test_a_pattern_stands_for_a_type_or_for_all_of_a_kind() -> None:
    assert matches("image/png", ["image/*"])
    assert matches("image/png", ["application/pdf", "image/png"])
    assert matches("image/png", ["*/*"])
    assert not matches("image/png", ["audio/*", "image/gif"])
    assert not matches("image/png", [])


def test_each_type_is_the_one_of_some_name_and_no_name_is_of_a_type_that_is_not_taken() -> None:
    assert set(TYPES_BY_SUFFIX.values()) <= MEDIA_TYPES
    assert type_of_name("a.tar.PDF") == "application/pdf"
    assert type_of_name("résumé.jpeg") == "image/jpeg"
    assert [type_of_name(name) for name in (None, "", "pdf.", "a.html", "a.exe", ".")] == [None] * 6
