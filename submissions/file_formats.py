"""Which format a file has, by its first bytes and by its last; nothing is opened or unpacked."""

from __future__ import annotations

from typing import BinaryIO

GZIP = b"\x1f\x8b"

_END_OF_ZIP = b"PK\x05\x06"
_END_OF_ZIP_BYTES = 22
"""The record that ends a zip archive, without its comment (PKWARE APPNOTE 6.3, 4.3.16)."""
_LONGEST_ZIP_COMMENT = 0xFFFF

_FORMATS = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes them (.pt, .pth, .ckpt)"),
    (b"PK\x05\x06", "a zip archive"),
    (GZIP, "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"GGUF", "a GGUF file"),
    (b"\x7fELF", "an executable"),
    (b"#!", "a script"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
    (b"<", "a web page or XML"),
)
"""How files begin that people send by mistake; told apart only to say what was sent."""


def described(first: bytes) -> str | None:
    r"""What a file is that begins like this, in a few words; None where nothing is known.

    >>> described(b"PK\x03\x04\x00\x00")
    'a zip archive, as torch.save writes them (.pt, .pth, .ckpt)'
    """
    return next((what for magic, what in _FORMATS if first.startswith(magic)), None)


def ends_as_zip(file: BinaryIO, size: int) -> bool:
    """Whether a file is a zip archive for those who look for one at its end, as zip is defined.

    The record that ends an archive tells how long the comment behind it is; by chance this and the
    directory's length fit in none of 10^9 files.
    """
    tail_bytes = min(size, _END_OF_ZIP_BYTES + _LONGEST_ZIP_COMMENT)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    at = tail.rfind(_END_OF_ZIP)
    while at >= 0:
        comment = int.from_bytes(tail[at + 20 : at + 22], "little")
        directory = int.from_bytes(tail[at + 12 : at + 16], "little")
        whole = len(tail) - at == _END_OF_ZIP_BYTES + comment
        if whole and directory <= size - len(tail) + at:
            return True
        at = tail.rfind(_END_OF_ZIP, 0, at)
    return False
