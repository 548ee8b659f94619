"""The models that CAR names, shipped as data in `catalog.json`."""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

PREFIX = "vllm-mlx/"


class CatalogEntry(NamedTuple):
    """One model of the catalog.

    Attributes:
        name: The id without `vllm-mlx/`.
        repository: The Hub repository that it stands for.
        family: CAR's name of the family.
        context_window: Tokens that prompt and answer share.
        capabilities: CAR's words, such as `tool_use` and `vision`.
        size_mb: Weights on disk.
        ram_mb: Memory that CAR asks for.
    """

    name: str
    repository: str
    family: str
    context_window: int
    capabilities: tuple[str, ...]
    size_mb: int
    ram_mb: int


class Catalog(NamedTuple):
    """All entries, and further repositories that are only ever suggested."""

    entries: tuple[CatalogEntry, ...]
    repositories: tuple[str, ...]

    def by_name(self, name: str) -> CatalogEntry | None:
        """Return the entry of an id without prefix; case and `:` against `-` do not matter."""
        wanted = normalized(name)
        return next((e for e in self.entries if normalized(e.name) == wanted), None)

    def by_repository(self, repository: str) -> CatalogEntry | None:
        """Return the entry that stands for a Hub repository."""
        wanted = repository.lower()
        return next((e for e in self.entries if e.repository.lower() == wanted), None)


def normalized(name: str) -> str:
    """Return a form in which equal ids are equal strings."""
    return name.lower().replace(":", "-")


@cache
def catalog() -> Catalog:
    """Return the shipped catalog, read once."""
    shipped = json.loads((Path(__file__).parent / "catalog.json").read_bytes())
    return Catalog(
        entries=tuple(
            CatalogEntry(
                name=model["id"].removeprefix(PREFIX),
                repository=model["hf_repo"],
                family=model["family"],
                context_window=model["context_length"],
                capabilities=tuple(model["capabilities"]),
                size_mb=model["size_mb"],
                ram_mb=model["ram_mb"],
            )
            for model in shipped["models"]
        ),
        repositories=tuple(shipped["repositories"]),
    )
