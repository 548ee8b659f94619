"""What is refused at construction, and what a model object can be used for."""

import copy
import math
import pickle
import subprocess
import sys
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumpd, load
from unit.refusals import MODEL, refused

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.durations import seconds
from langchain_car_vllm.errors import ConfigurationError, UnknownModelError
from langchain_car_vllm.wire.request import parameters


def test_an_unknown_model_id_names_the_nearest_ones():
    """A typo is answered with the id that was meant."""
    with pytest.raises(UnknownModelError, match=r"qwen3\.6-35b-a3b"):
        ChatVllmMlx(model="vllm-mlx/qwen3.6-35b-a3c:4bit")


def test_a_missing_model_is_refused():
    """The model is the one field without a default."""
    with pytest.raises(ConfigurationError, match="`model` is missing"):
        ChatVllmMlx()


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path):
    """A local directory must hold a model's configuration."""
    with pytest.raises(UnknownModelError):
        ChatVllmMlx(model=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", -1),
        ("timeout", 0),
        ("startup_timeout", -5),
        ("max_tokens", 0),
        ("thinking_budget", 0),
        ("max_retries", -1),
        ("temperature", -0.1),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("revision", ""),
        ("revision", "../main"),
        ("revision", "/main"),
        ("keep_alive", None),
        ("keep_alive", -2),
        ("keep_alive", "soon"),
        ("keep_alive", float("nan")),
        ("engine", "vllm"),
        ("temperature", "hot"),
        ("reasoning", "extreme"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(name, value):
    """The message names the setting and what was given."""
    refused(f"`{name}`", **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("reasoning", "maybe", '"low", "medium" or "high"'),
        ("server_args", "--max-tokens 9", '["--max-tokens", "4096"]'),
        ("server_args", [5], '["--max-tokens", "4096"]'),
        ("stop", [5], "a list of strings"),
        ("keep_alive", [], '"10m"'),
        ("disable_streaming", "tools", '"tool_calling"'),
        ("timeout", "soon", "a number, not `'soon'`"),
        ("max_tokens", 1.5, "a whole number, not `1.5`"),
        ("validate_model_on_init", "maybe", "True or False"),
        ("engine", "fast", "`auto`, `simple` or `batched`"),
        ("extra_body", [1], "a dictionary"),
        ("default_headers", 5, "a dictionary"),
        ("revision", 5, "a string, not `5`"),
        ("server_args", None, '["--max-tokens", "4096"]'),
    ],
)
def test_a_wrong_value_is_answered_with_what_may_be_written(name, value, right):
    """Not with the members of a union or the kinds that pydantic tried."""
    assert right in str(refused(f"`{name}` must be", **{name: value}))


@pytest.mark.parametrize(
    ("name", "value"), [("cache", "x"), ("callbacks", "x"), ("rate_limiter", 5), ("metadata", [])]
)
def test_a_wrong_value_of_langchains_is_named_as_the_user_names_it(name, value):
    """Without pydantic's words for the members of a union."""
    with pytest.raises(ConfigurationError, match=f"`{name}`") as caught:
        ChatVllmMlx(model=MODEL, **{name: value})
    assert "BaseC" not in caught.value.message.partition(":")[0]


@pytest.mark.parametrize(
    "host",
    ["http://images.lan", "images.lan:80", "images.lan/a", "*.lan", "", "a b", "[::1]", "u@h"],
)
def test_what_is_not_a_host_is_refused_where_hosts_are_listed(host):
    """It would be none of the hosts that are asked, and nobody would know why."""
    error = refused("not a host", fetch_media=["images.lan", host])
    assert "`images.lan`" in (error.hint or "")
    assert "u@" not in error.message


@pytest.mark.parametrize(
    "host", ["images.lan", "localhost", "127.0.0.1", "::1", "fe80::1", "bücher.example"]
)
def test_a_host_may_be_a_name_or_an_address(host):
    """In a list, for which it is asked."""
    assert ChatVllmMlx(model=MODEL, fetch_media=[host]).fetch_media == [host]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, bad) for name in parameters.SAMPLING for bad in (math.nan, math.inf, -math.inf)],
        *[(name, -1) for name in ("temperature", "top_p", "top_k", "min_p", "max_tokens")],
        ("repetition_penalty", 0),
        ("top_p", 2),
        ("min_p", 1.5),
        ("timeout", math.inf),
        ("thinking_budget", 0),
    ],
)
def test_what_a_constructor_refuses_every_call_refuses_too(name, value):
    """By the same words, in `bind`, in `model_kwargs` and in the call; nothing is sent."""
    refusals = [refused(f"`{name}` must be", **{name: value})]
    refusals.append(refused(f"`{name}` must be", model_kwargs={name: value}))
    model = ChatVllmMlx(model=MODEL, base_url="http://127.0.0.1:9/v1")
    for call in (model.bind(**{name: value}).invoke, partial(model.invoke, **{name: value})):
        with pytest.raises(ConfigurationError) as caught:
            call("hi")
        refusals.append(caught.value)
    is_whole = name in ("top_k", "max_tokens") and isinstance(value, float)
    told = {str(refusal).partition(", not")[0] for refusal in refusals}
    assert len(told) == 1 or is_whole


@pytest.mark.parametrize("name", ["timeout", "temperature"])
@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_that_no_float_can_hold_is_refused(name, digits):
    """Python itself raises where it is made a float, and where it is written."""
    error = refused(f"`{name}` must be", **{name: 10**digits})
    model = ChatVllmMlx(model=MODEL, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match=f"`{name}` must be") as caught:
        model.invoke("hi", **{name: 10**digits})
    assert len(str(caught.value)) < 200 > len(str(error))


@pytest.mark.parametrize("name", ["server_env", "default_headers", "api_key"])
def test_a_secret_that_cannot_work_is_not_shown(name):
    """The message names the setting, not the value."""
    secret = ["very secret"]
    error = refused(f"`{name}", **{name: secret if name == "api_key" else {"TOKEN": secret}})
    assert "very secret" not in str(error)


@pytest.mark.parametrize("name", ["server_args", "engine", "base_url", "startup_timeout"])
def test_what_only_the_constructor_takes_is_said_to_be_that(name):
    """A call cannot change which server it is that answers, or how it is waited for."""
    model = ChatVllmMlx(model=MODEL, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match=name) as caught:
        model.invoke("hi", **{name: 1})
    assert "model_copy" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("top_k", 1.5),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("timeout", "soon"),
        ("timeout", -1),
        ("thinking_budget", 0),
        ("max_input_tokens", "many"),
        ("stop", [5]),
        ("extra_body", [1]),
        ("extra_headers", "x"),
        ("chat_template_kwargs", "x"),
        ("logit_bias", [1]),
        ("model", 5),
        ("tools", {"a": 1}),
    ],
)
def test_values_of_a_call_that_cannot_work_are_refused_by_name(name, value):
    """As the constructor refuses them, and before anything is sent."""
    model = ChatVllmMlx(model=MODEL, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match=f"`{name}`"):
        model.invoke("hi", **{name: value})


def test_a_call_may_have_a_keep_alive_of_its_own():
    """In `bind` and per call as in the constructor; it names no other server."""
    model = ChatVllmMlx(model=MODEL)
    for call, expected in (({}, 600), ({"keep_alive": "2h"}, 7200), ({"keep_alive": -1}, -1)):
        spec = model._call(None, call).spec
        assert spec.keep_alive == expected
        assert spec.key() == model._spec().key()
    with pytest.raises(ConfigurationError, match="keep_alive"):
        model.invoke("hi", keep_alive="soon")


@pytest.mark.parametrize(
    "argument",
    [
        "--port",
        "--host=0.0.0.0",
        "--api-key",
        "--port 8000",
        "--served-model-name",
        "--api",
        "--por=1",
        "--serv",
    ],
)
def test_arguments_that_the_supervisor_chooses_are_refused(argument):
    """Whoever wants another address brings a server of their own."""
    refused("server_args", server_args=[argument])


@pytest.mark.parametrize(
    ("argument", "right"),
    [
        ("--max-num-seqs 4", '`["--max-num-seqs", "..."]`'),
        ("--hf-token hush", "`--hf-token=...`"),
        ("-m\tx", "`-m=...`"),
        ("--continuous-batching ", "`--continuous-batching=...`"),
    ],
)
def test_two_words_in_one_are_refused_with_the_right_form(argument: str, right: str):
    """The server only said that it does not know such a flag."""
    error = refused("server_args", server_args=[argument])
    assert right in (error.hint or "")
    assert "hush" not in str(error)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--default-chat-template-kwargs", '{"a": 1}'],
        ["--x={1: 2}"],
        ["--y", "- be kind"],
        ["-1 2"],
    ],
)
def test_values_may_hold_spaces(arguments: list[str]):
    """Behind a flag, and behind its equals sign."""
    assert ChatVllmMlx(model=MODEL, server_args=arguments).server_args == arguments


@pytest.mark.parametrize(
    "fields",
    [
        {"server_args": ["--x\0"]},
        {"server_args": ["--\ud800"]},
        {"server_env": {"": "hush"}},
        {"server_env": {"A=B": "hush"}},
        {"server_env": {"A\0": "hush"}},
        {"server_env": {"A": "hush\0"}},
        {"server_env": {"A": "hush\ud800"}},
    ],
)
def test_what_no_process_can_be_given_is_refused(fields):
    """Here, and not by a supervisor that reports it as a bug, value and all."""
    assert "hush" not in str(refused(next(iter(fields)), **fields))


def test_an_empty_name_is_no_model():
    """It was taken for the model itself, which then drafted for itself in twice the memory."""
    refused("model id", draft="")
    with pytest.raises(UnknownModelError):
        ChatVllmMlx(model=MODEL).invoke("hi", model="")


def test_folders_of_models_are_not_the_servers_alone():
    """A cache that only the server knew would be downloaded to and never looked into."""
    error = refused("HF_HOME", server_env={"HF_HOME": "/models"})
    assert "environment of this program" in (error.hint or "")


def test_what_the_server_ignores_is_warned_about_once():
    """`seed` has no effect, and that is said the first time only."""
    code = f"""
import warnings
warnings.simplefilter("always")
from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
for _ in range(3):
    ChatVllmMlx(model={MODEL!r}, model_kwargs={{"seed": 1}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.count("vllm-mlx ignores `seed`") == 1
    assert "<string>:6: UserWarning" in done.stderr


def test_construction_imports_no_client(home):
    """openai comes with the first call, and nothing is written to the home."""
    code = f"""
import sys
from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
model = ChatVllmMlx(model={MODEL!r})
model.bind_tools([{{"title": "f", "description": "d", "type": "object", "properties": {{}}}}])
print([m for m in ("openai", "langchain_openai", "jsonschema") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [("10m", 600), ("90", 90), (0, 0), (-1, -1), ("1.5h", 5400), ("30 s", 30), ("1d", 86400)],
)
def test_durations(value, expected):
    """Seconds, or a number with a unit."""
    assert seconds(value, "keep_alive", lowest=-1) == expected


def test_secrets_are_neither_written_down_nor_shown():
    """Keys, headers and the server's environment stay out of dumps and representations."""
    model = ChatVllmMlx(
        model=MODEL,
        default_headers={"x-key": "s3cret"},
        server_env={"HF_TOKEN": "s3cret"},
    )
    seen = [repr(model), str(dumpd(model)), str(model._get_invocation_params())]
    assert not any("s3cret" in text for text in seen)
    assert dict(model._spec().server_env) == {"HF_TOKEN": "s3cret"}


def test_a_model_survives_pickle_copies_and_load():
    """The object holds configuration only, before and after."""
    model = ChatVllmMlx(model=MODEL, temperature=0.5, server_env={"A": "b"})
    assert pickle.loads(pickle.dumps(model)) == model
    assert copy.deepcopy(model) == model
    assert model.model_copy(update={"temperature": 0.1}).temperature == 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load(
            dumpd(model),
            allowed_objects=[ChatVllmMlx],
            valid_namespaces=["langchain_car_vllm"],
        )
    assert (loaded.model, loaded.temperature) == (MODEL, 0.5)


@pytest.mark.parametrize("given", ["./model", Path("model"), "../here/model"])
def test_a_relative_path_means_the_same_wherever_the_program_goes(
    given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A program that changes its directory, or a worker that starts in another, asks one model."""
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    for folder in (here / "model", here / "tuned"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    monkeypatch.chdir(here)
    model = ChatVllmMlx(given, adapter="./tuned", draft="./model")
    former = model._spec()
    assert (former.source, former.adapter) == (str(here / "model"), str(here / "tuned"))
    monkeypatch.chdir(there)
    for other in (model, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other._spec() == former
    with pytest.raises(UnknownModelError, match="there/model"):
        model._spec("./model")


@pytest.mark.parametrize("name", ["model", "revision", "api_key", "base_url"])
def test_what_is_not_text_is_named_and_not_shown(name):
    """As the name of a folder in another encoding comes from the system."""
    error = refused(f"`{name}` contains characters", **{name: "http://a/\udcff"})
    assert "udcff" not in ascii(str(error))


def test_the_name_of_somebody_elses_model_is_no_path():
    """Their server may call it whatever it likes."""
    assert ChatVllmMlx("./model", base_url="http://127.0.0.1:9/v1").model == "./model"


def test_a_path_from_a_directory_that_is_gone_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Never Python's own."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for fields in ({"model": "./m"}, {"adapter": "./m"}, {"draft": "./m"}):
        refused("working directory is gone", **fields)


def test_the_versions_of_all_layers_are_in_the_traces():
    """LangChain notes its own after a construction, a copy and an assignment, too."""
    model = ChatVllmMlx(model=MODEL)
    assigned = copy.copy(model)
    assigned.temperature = 0.5
    for made in (model, model.model_copy(update={"temperature": 0.5}), assigned):
        noted = made.metadata["lc_versions"]
        assert noted["langchain-core"] == version("langchain-core")
        assert noted["langchain-car-vllm"] == version("langchain-car-vllm")


class Listener:
    async def __call__(self, progress: object) -> None: ...


async def listen(text: str, progress: object) -> None: ...


@pytest.mark.parametrize("listener", [Listener(), Listener().__call__, partial(listen, "a")])
def test_an_async_listener_is_refused(listener: Any):
    """Nobody awaits it: it would hear nothing, and nobody would tell."""
    assert "call_soon_threadsafe" in str(refused("must be a plain function", on_progress=listener))
