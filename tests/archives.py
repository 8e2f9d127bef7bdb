"""Read the files of a tar archive in a test."""

import tarfile

__all__ = ["read_file"]


def read_file(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    """Return the content of a regular file of an archive.

    Raises:
        KeyError: The archive has no such member.
        AssertionError: The member is not a file.
    """
    file = archive.extractfile(member)
    assert file is not None, f"{member} is not a file"
    return file.read()
