"""The archive that ``torch.save`` writes, before anything in it is unpickled."""

import struct
import zipfile
import zlib
from pathlib import Path


def check_archive(path: Path) -> None:
    """That the zip archive ``path`` is whole and as large as it says; other files are left to who reads them.

    ``torch.load`` neither compares checksums nor looks at sizes before it allocates: a flipped bit becomes a weight,
    and a small compressed file any amount of memory. ``torch.save`` compresses nothing.

    Raises:
        ValueError: the archive is damaged, or of another kind than ``torch.save`` writes.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("compressed, which torch.save does not do")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("more content than the file is long")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, RuntimeError, EOFError, OverflowError) as error:
        raise ValueError(f"damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"damaged: the checksum of {damaged} is another")
