"""Files of weights in the safetensors format that hold nothing of interest."""

import json
import struct
from pathlib import Path

LEAST = 128


def weights_of(size: int) -> bytes:
    """Return a whole file of so many bytes, at least `LEAST`."""
    end = max(size, LEAST) - LEAST
    pattern = bytes(range(256)) * (end // 256 + 1)
    return _header(end) + pattern[:end]


def write_sparse_weights(path: Path, size: int) -> None:
    """Write a whole file of so many bytes that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(_header(size - LEAST))
        file.truncate(size)


def _header(end: int) -> bytes:
    header = {"w": {"dtype": "U8", "shape": [end], "data_offsets": [0, end]}}
    text = json.dumps(header).encode().ljust(LEAST - 8)
    return struct.pack("<Q", len(text)) + text
