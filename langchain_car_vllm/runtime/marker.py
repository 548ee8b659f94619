"""What is known of the managed environment: a small file inside it, replaced as a whole.

No marker means that somebody else, such as CAR, made the environment.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from langchain_car_vllm.support.replaced_files import replaced_file

MARKER = ".langchain-car-vllm.json"

State = Literal["installing", "complete"]


class Marker(NamedTuple):
    """The note that an installation leaves.

    Attributes:
        state: `installing` from before the first change until the last test has passed.
        ours: Whether this package made the environment, as opposed to adding to CAR's.
        requirements: What was asked for: a hash of the locked set, or a requirement.
        version: The version of `vllm-mlx`; while installing the one that worked before, empty where
            there was none.
    """

    state: State
    ours: bool
    requirements: str
    version: str = ""


def read_marker(root: Path) -> Marker | None:
    """Return an environment's marker, None where there is none or it cannot be read."""
    try:
        found: Any = json.loads((root / MARKER).read_bytes())
        return Marker(
            "complete" if found["state"] == "complete" else "installing",
            bool(found["ours"]),
            str(found["requirements"]),
            str(found["version"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_incomplete(root: Path) -> bool:
    """Return whether an installation was begun here and not finished."""
    marker = read_marker(root)
    return marker is not None and marker.state == "installing"


def write_marker(root: Path, marker: Marker) -> None:
    """Put a marker in place, atomically and durably.

    Raises:
        OSError: The environment cannot be written to.
    """
    with replaced_file(root / MARKER, mode=0o644) as file:
        file.write(json.dumps(marker._asdict()).encode())
        file.flush()
        os.fsync(file.fileno())
