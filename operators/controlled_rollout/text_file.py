"""Files that people or other processes write: never waited for, and texts in the encoding that they were saved in."""

import codecs
import errno
import os
import re
import stat
from pathlib import Path
from typing import Final

__all__ = ["read_regular_file", "read_text_file"]

MAX_BYTES: Final = 2_000_000
# The longest first: UTF-32's mark begins with UTF-16's.
BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# As in Python's own files (PEP 263), and as pip reads requirements: a comment in one of the first two lines.
DECLARATION: Final = re.compile(rb"\A(?:[^\n]*\n)?[ \t\f]*#[^\n]*?coding[:=][ \t]*([-\w.]+)")


def read_regular_file(path: Path) -> bytes:
    """Return the content of a file; raise OSError for a pipe or a device, which would keep the reader for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def read_text_file(path: Path, *, keeps_bytes: bool = False) -> str:
    """Return a file's text: by its byte order mark, the encoding that it declares, or as UTF-8.

    Args:
        path: The file.
        keeps_bytes: Bytes that are not UTF-8 become surrogates, as in the names of files.

    Raises:
        OSError: It cannot be read.
        ValueError: It has more than 2 MB, or its bytes are not of that encoding.
    """
    with path.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES / 1e6:.0f} MB, which is more than such a file has")
    marked = next((encoding for mark, encoding in BYTE_ORDER_MARKS if content.startswith(mark)), None)
    encoding = marked or _declared_encoding(content) or "utf-8"
    if marked is None and b"\0" in content:
        raise ValueError("it has zero bytes, as UTF-16 without a byte order mark has them: save it as UTF-8")
    try:
        return content.decode(encoding, "surrogateescape" if keeps_bytes and encoding == "utf-8" else "strict")
    except ValueError as error:
        line = content.count(b"\n", 0, getattr(error, "start", 0)) + 1
        raise ValueError(
            f"line {line} is not {encoding}: save it as UTF-8, or name its encoding in the first line, "
            "such as `# -*- coding: latin-1 -*-`"
        ) from error


def _declared_encoding(content: bytes) -> str | None:
    """Return the encoding that one of the first two lines declares; None without one that Python has for texts."""
    declaration = DECLARATION.match(content)
    if not declaration:
        return None
    encoding = declaration[1].decode()
    try:
        "".encode(encoding)
    except (LookupError, ValueError):
        # A comment about encodings, such as `# encoding: see below`.
        return None
    return encoding
