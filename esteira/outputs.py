"""Files of a step appear whole or not at all: all are written under temporary names, then renamed; nothing else is done here."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from esteira import crash
from esteira.errors import OutsideError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files into the folder, which is created; what was there stays untouched unless all could be written.

    Args:
        folder: where the files go.
        files: file name -> bytes.

    Raises:
        OutsideError: the disk is full or the folder cannot be written; no temporary file is left.
    """
    waiting: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            with _new(temporary) as stream:
                waiting.append((temporary, folder / name))
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        crash.point("outputs.before_rename")
        for temporary, final in waiting:
            temporary.replace(final)
    except OSError as error:
        size = sum(len(data) for data in files.values())
        if error.errno in _FULL:
            raise OutsideError(
                f"{len(files)} files of {size:,} bytes together must fit on the disk, but it is full: {error.strerror}",
                code="disk_full",
                where=f"{folder.name}/ ({', '.join(files)})",
                cure="free space where build/ and $ESTEIRA_HOME lie, then run again; what was there before is untouched",
            ) from error
        raise OutsideError(
            f"a step must be able to write its outputs, but: {error.strerror or error}",
            code="cannot_write",
            where=f"{folder.name}/",
            cure="check that the folder exists, is a folder and may be written by this user",
        ) from error
    finally:
        for temporary, _ in waiting:
            temporary.unlink(missing_ok=True)


def _new(path: Path) -> IO[bytes]:
    """A new file to write; what has its name, left by a process of the same number or a link that was put there, is not followed."""
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb")  # noqa: PTH123
