"""Files that are replaced in one step: a reader finds the former one or the new one, never half."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def draft_name(name: str, tag: str = "new") -> str:
    """Return what the draft of a file is called, which a killed writer leaves beside it.

    Args:
        name: Of the file.
        tag: Tells drafts of many writers apart; `*` is the pattern of all.
    """
    return f".{name}.{tag}"


@contextmanager
def replaced_file(
    path: Path, *, many_writers: bool = False, mode: int = 0o600
) -> Iterator[IO[bytes]]:
    """Yield a new file that takes the place of `path` at the end of the block.

    Where the block fails, `path` stays as it was.

    Args:
        path: The file, which need not exist; its folder must.
        many_writers: Whether others may replace it at the same time. Each needs a draft of its own
            then, which stays behind where a writer is killed.
        mode: Who may read and write the file, less what the umask forbids.

    Raises:
        OSError: It cannot be written.
    """
    draft = path.with_name(draft_name(path.name, secrets.token_hex(4) if many_writers else "new"))
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with os.fdopen(os.open(draft, flags, mode), "wb") as file:
            yield file
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
