"""The models that CAR names, shipped as data in `catalog.json`."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PREFIX = "vllm-mlx/"
_BITS = ("-bf16", "-fp16", "-8bit", "-6bit", "-5bit", "-4bit", "-mlx")


class CatalogEntry(NamedTuple):
    """One model of the catalog.

    Attributes:
        name: The id without `vllm-mlx/`.
        repository: The Hub repository that it stands for.
        context_window: Tokens that prompt and answer share.
        capabilities: CAR's words, such as `tool_use` and `vision`.
        size_mb: Weights on disk.
        config: What of the repository's `config.json` tells the cost of a conversation.
    """

    name: str
    repository: str
    context_window: int
    capabilities: tuple[str, ...]
    size_mb: int
    config: dict[str, Any]


class Catalog(NamedTuple):
    """All entries, and further repositories that are only ever suggested."""

    entries: tuple[CatalogEntry, ...]
    repositories: tuple[str, ...]

    def by_name(self, name: str) -> CatalogEntry | None:
        """Return the entry of an id without prefix; case and `:` against `-` do not matter."""
        wanted = normalize(name)
        return next((e for e in self.entries if normalize(e.name) == wanted), None)

    def by_repository(self, repository: str) -> CatalogEntry | None:
        """Return the entry that stands for a Hub repository."""
        wanted = repository.lower()
        return next((e for e in self.entries if e.repository.lower() == wanted), None)


class Recommendation(NamedTuple):
    """A model that may be recommended.

    Attributes:
        model: Its id.
        size_mb: Of its weights.
        tasks: What it is for.
        why: What speaks for it.
        config: As in `CatalogEntry`, with the context; None where it is not shipped.
    """

    model: str
    size_mb: int
    tasks: list[str]
    why: str
    config: dict[str, Any] | None = None


def normalize(name: str) -> str:
    """Return a form in which equal ids are equal strings."""
    return name.lower().replace(":", "-")


def small_sibling(repository: str) -> str | None:
    """Return the 4-bit repository of the same model, None where none is known or it is the one."""
    stem = normalize(repository.rpartition("/")[2])
    known = (*(e.repository for e in catalog().entries), *catalog().repositories)
    names = {normalize(name.rpartition("/")[2]): name for name in known}
    for bits in _BITS:
        stem = stem.removesuffix(bits)
    found = names.get(f"{stem}-4bit")
    return None if found is None or found.lower() == repository.lower() else found


@cache
def catalog() -> Catalog:
    """Return the shipped catalog, read once."""
    shipped = _shipped("catalog.json")
    recommended = [r.model for r in recommendations() if not r.model.startswith(PREFIX)]
    return Catalog(
        entries=tuple(
            CatalogEntry(
                name=model["id"].removeprefix(PREFIX),
                repository=model["hf_repo"],
                context_window=model["context_length"],
                capabilities=tuple(model["capabilities"]),
                size_mb=model["size_mb"],
                config=model["config"],
            )
            for model in shipped["models"]
        ),
        repositories=tuple(dict.fromkeys([*recommended, *shipped["repositories"]])),
    )


@cache
def recommendations() -> tuple[Recommendation, ...]:
    """Return the models that may be recommended, the better one of a task first."""
    return tuple(Recommendation(**entry) for entry in _shipped("recommendations.json")["models"])


def shipped_config(repository: str) -> tuple[dict[str, Any], int] | None:
    """Return what is shipped of a recommended model that is in no catalog, with its size in MB."""
    wanted = repository.lower()
    found = (r for r in recommendations() if r.config and r.model.lower() == wanted)
    return next(((r.config, r.size_mb) for r in found if r.config), None)


def _shipped(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / name).read_bytes())
    return found
