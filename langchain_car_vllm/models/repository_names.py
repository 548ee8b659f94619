"""Names of repositories: the Hub's rule, and what people paste and write instead of them."""

import re
from typing import NamedTuple

_NAME = re.compile(r"\b[\w\-.]+\b/\b[\w\-.]+\b", re.ASCII)
_LONGEST = 96
# What follows is compiled where it is used: it serves errors alone.
_SITE = (
    r"(?:(?:https?://|git@)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)[/:]"
    r"|hf:(?://)?|huggingface[:/])?(?:api/)?(?:models/(?=[^/]+/[^/]))?"
)
_REPOSITORY = r"([\w.\-]+/[\w.\-]+)(.*)"
_FOLDER = r"models--([\w.\-]+?)--([\w.\-]+)"
_TAG, _REVISION = r":([\w.\-]+)/*", r"(?:@|/(?:tree|blob|resolve)/)([\w.\-]+)"
_QUANTIZATION = r"\d+bit|b?fp?\d+|i?q\d\w*|latest|free"
_OTHER_PAGES = ("datasets", "spaces", "collections", "docs", "papers", "blog", "api", "models")
_AROUND = " \"'`<>()[],;"
_DASHES = "[\u2010-\u2015\u2212]"


class OtherSpelling(NamedTuple):
    """What a text names.

    Attributes:
        repository: `org/name`.
        revision: Of that repository, None for the default branch.
        tag: What another program calls a variant, None where there is none.
    """

    repository: str
    revision: str | None = None
    tag: str | None = None


def is_repository(name: str) -> bool:
    """Return whether a name has the form of a Hub repository, `org/repo`.

    It is the Hub's own rule (huggingface_hub, `validate_repo_id`).
    """
    return (
        len(name) <= _LONGEST
        and _NAME.fullmatch(name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )


def copied_repository(folder: str) -> str | None:
    """Return the repository whose copies the Hub's cache keeps in a folder of that name."""
    found = re.fullmatch(_FOLDER, folder, re.ASCII)
    name = f"{found[1]}/{found[2]}" if found else ""
    return name if is_repository(name) else None


def read_spelling(text: str) -> OtherSpelling | None:
    """Return the repository that a text names in another way, None where it names none."""
    text = re.sub(_DASHES, "-", "".join(filter(str.isprintable, text))).replace("\\", "/")
    text = text.strip(_AROUND)
    site = re.match(_SITE, text, re.ASCII | re.IGNORECASE)
    is_address = site is not None and site.end() > 0
    rest = re.sub(r"\s*/+\s*", "/", text[site.end() :] if site else text)
    if copied := copied_repository(rest):
        return OtherSpelling(copied)
    found = re.match(_REPOSITORY, rest, re.ASCII)
    if found is None or found[1].partition("/")[0].lower() in _OTHER_PAGES:
        return None
    tag, revision = re.fullmatch(_TAG, found[2]), re.match(_REVISION, found[2])
    is_file = found[2].lower().endswith(".gguf")
    if not (is_address or is_file or tag or revision or not found[2].strip("/")):
        return None
    spelling = OtherSpelling(found[1].removesuffix(".git"))
    said = tag or revision
    if said is None or said[1] == "main":
        return _checked(spelling)
    if tag or re.fullmatch(_QUANTIZATION, said[1], re.IGNORECASE):
        return _checked(spelling._replace(tag=said[1]))
    return _checked(spelling._replace(revision=said[1]))


def _checked(spelling: OtherSpelling) -> OtherSpelling | None:
    return spelling if is_repository(spelling.repository) else None
