"""Classes of a program's own are made from these as from any other of LangChain's."""

from typing import Any

import pytest
from pydantic import AliasChoices, ConfigDict, Field

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings
from langchain_car_vllm.errors import ConfigurationError

URL = "http://127.0.0.1:9/v1"


class OfTheHouse(ChatVllmMlx):
    """Defaults of a program's own, and settings with other names."""

    model: str = "house"
    base_url: str | None = URL
    temperature: float | None = 0.1
    team: str = Field(default="none", alias="teamName")
    desk: str = Field(default="none", validation_alias=AliasChoices("deskName", "desk_name"))


class ByEither(OfTheHouse):
    """The same by both names."""

    model_config = ConfigDict(populate_by_name=True)


class Embedder(VllmMlxEmbeddings):
    """The same for embeddings."""

    model: str = "embedder"
    base_url: str | None = URL


def test_a_default_of_the_model_is_heeded():
    """Nobody has to name what the class names; what is named wins."""
    assert OfTheHouse().model == OfTheHouse(base_url=URL).profile["name"] == "house"
    assert OfTheHouse("other").model == OfTheHouse(model="other").model == "other"
    assert Embedder().model == "embedder"


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (OfTheHouse, {"teamName": "a", "deskName": "d"}),
        (OfTheHouse, {"teamName": "a", "desk_name": "d"}),
        (ByEither, {"team": "a", "desk": "d"}),
    ],
)
def test_a_setting_may_have_another_name(cls: type[OfTheHouse], given: dict[str, Any]):
    """Also in a copy, which is made as a constructor makes it."""
    model = cls(**given)
    copied = model.model_copy(update={"temperature": 0.3})
    assert (model.team, copied.team, copied.desk, copied.temperature) == ("a", "a", "d", 0.3)
    model.temperature, model.team = 0.5, "b"
    assert (model.team, model.desk, model.temperature) == ("b", "d", 0.5)


def test_what_the_class_does_not_know_is_refused_all_the_same():
    """A wrong name would have no effect, without a word."""
    with pytest.raises(ConfigurationError, match="`teamNam`"):
        OfTheHouse(teamNam="a")
