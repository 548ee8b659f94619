"""Speculative decoding: passed on where it works, refused where it would do nothing, measured."""

import json
from pathlib import Path

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from unit.models.test_adapter import write_tensors
from unit.models.test_remote_code import asking

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Endpoint, Serving
from langchain_car_vllm.errors import (
    ConfigurationError,
    UnknownModelError,
    UnservableModelError,
    UntrustedCodeError,
)
from langchain_car_vllm.models.hub_listing import HubListing
from langchain_car_vllm.models.remote_code import TRUST
from langchain_car_vllm.progress.timings import Stopwatch
from langchain_car_vllm.server.client.status_look import StatusLook
from langchain_car_vllm.server.command import serve_arguments
from langchain_car_vllm.server.plan import plan_for
from langchain_car_vllm.wire.answer.result import AnswerEnd, add_times

HEADS = {"model_type": "qwen3_next", "num_nextn_predict_layers": 1}
NESTED = {
    "model_type": "qwen3_5_moe",
    "text_config": {"model_type": "qwen3_5_moe_text", "mtp_num_hidden_layers": 1},
}
SEEING = {"model_type": "gemma4", "vision_config": {"hidden_size": 8}}


def make_model(folder: Path, config: dict[str, object], *tensors: str) -> Path:
    """Make a folder that looks like a model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    names = ("model.layers.0.weight", *tensors)
    write_tensors(folder / "model.safetensors", {name: [4, 4] for name in names})
    return folder


def arguments_of(chat: ChatVllmMlx) -> list[str]:
    spec = chat._spec()
    return serve_arguments(spec, plan_for(spec).launch, 1)


@pytest.mark.parametrize("file", ["model-mtp.safetensors", "mtp/weights.safetensors"])
def test_heads_are_used_where_the_server_looks_for_them(tmp_path: Path, file: str):
    """Off unless asked for; never the flag that skips the check of a draft."""
    model = make_model(tmp_path / "model", NESTED)
    (model / file).parent.mkdir(exist_ok=True)
    write_tensors(model / file, {"mtp.fc.weight": [4, 4]})
    assert "--enable-mtp" not in arguments_of(ChatVllmMlx(model))
    chat = ChatVllmMlx(model, draft=True)
    arguments = arguments_of(chat)
    assert "--enable-mtp" in arguments
    assert "--mtp-optimistic" not in arguments
    serving = plan_for(chat._spec()).launch.serving
    assert (serving.draft, serving.max_sequences) == ("mtp", 1)
    assert arguments[arguments.index("--max-num-seqs") + 1] == "1"
    assert chat._spec().key() != ChatVllmMlx(model)._spec().key()
    assert ChatVllmMlx(model, draft=False)._spec().key() == ChatVllmMlx(model)._spec().key()
    with pytest.raises(UnservableModelError, match="simple engine does not draft"):
        plan_for(ChatVllmMlx(model, draft=True)._spec(engine="simple"))


@pytest.mark.parametrize(
    ("config", "file", "tensor", "reason"),
    [
        ({"model_type": "llama"}, "", "", "not name any MTP heads"),
        (
            {"model_type": "llama", "num_nextn_predict_layers": "1"},
            "",
            "",
            "not name any MTP heads",
        ),
        ({"model_type": "llama", "text_config": [1]}, "", "", "not name any MTP heads"),
        (HEADS, "", "", "have no MTP heads"),
        (HEADS, "", "model.mtp.layers.0.weight", "among its other weights"),
        (NESTED, "", "language_model.mtp.fc.weight", "among its other weights"),
        (HEADS, "mtp/weights.safetensors", "", "have no MTP heads"),
        (HEADS | {"model_type": "glm4_moe"}, "model-mtp.safetensors", "", "and Qwen3-Next only"),
    ],
)
def test_a_model_whose_heads_would_not_be_used_is_refused(
    tmp_path: Path, config: dict[str, object], file: str, tensor: str, reason: str
):
    """The server would only log a warning and go on without."""
    model = make_model(tmp_path / "model", config, *([tensor] if tensor else []))
    if file:
        (model / file).parent.mkdir(exist_ok=True)
        write_tensors(model / file, {"mtp.fc.weight": [4, 4]})
    with pytest.raises(UnservableModelError, match=reason):
        plan_for(ChatVllmMlx(model, draft=True)._spec())
    absent = ChatVllmMlx("org/to-be-fetched", draft=True)._spec()
    listing = HubListing(config, 1, 1)
    if reason in ("have no MTP heads", "among its other weights"):  # nobody has seen them yet
        assert plan_for(absent, listing)
    else:
        with pytest.raises(UnservableModelError, match=reason):
            plan_for(absent, listing)


def test_a_draft_model_is_for_models_that_see(tmp_path: Path):
    """It is served beside the model, its memory counted, and has to be here."""
    model = make_model(tmp_path / "model", SEEING)
    draft = make_model(tmp_path / "draft", {"model_type": "gemma4_assistant"})
    chat = ChatVllmMlx(model, draft=str(draft))
    arguments = arguments_of(chat)
    assert arguments[arguments.index("--mllm-draft-model") + 1] == str(draft)
    assert {"--mllm", "--default-mllm-draft"} <= set(arguments)
    plain = plan_for(ChatVllmMlx(model)._spec()).launch.memory.weights
    assert plan_for(chat._spec()).launch.memory.weights > plain
    text = make_model(tmp_path / "text", {"model_type": "llama"})
    with pytest.raises(UnservableModelError, match="takes no draft model"):
        plan_for(ChatVllmMlx(text, draft=str(draft))._spec())
    with pytest.raises(UnservableModelError, match="not on this machine"):
        plan_for(ChatVllmMlx(model, draft="org/draft")._spec())
    with pytest.raises(UnservableModelError, match="`org/draft` is not on this machine"):
        plan_for(ChatVllmMlx("org/to-be-fetched", draft="org/draft")._spec())


@asking
def test_a_draft_model_runs_nothing(tmp_path: Path, file: str, content: dict[str, object]):
    """Its files are looked at for code as those of the model are."""
    model = make_model(tmp_path / "model", SEEING)
    draft = make_model(tmp_path / "draft", {"model_type": "gemma4_assistant"})
    (draft / file).write_text(json.dumps(content))
    with pytest.raises(UntrustedCodeError, match=file):
        plan_for(ChatVllmMlx(model, draft=str(draft))._spec())
    trusting = ChatVllmMlx(model, draft=str(draft), server_args=[TRUST])
    assert "--mllm-draft-model" in arguments_of(trusting)


def test_what_cannot_be_meant_is_refused():
    """At construction, or by the call."""
    with pytest.raises(ConfigurationError, match="needs a server that this package starts"):
        ChatVllmMlx("m", base_url="http://127.0.0.1:9/v1", draft=True)
    with pytest.raises(ConfigurationError, match="`draft`"):
        ChatVllmMlx("org/model", draft_model="org/small")
    with pytest.raises(UnknownModelError):
        ChatVllmMlx("org/model", draft="no such thing")


def events(metadata: object) -> bytes:
    choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}
    last = {"choices": [], "usage": {"completion_tokens": 9}, "generation_metadata": metadata}
    parts = [{"choices": [choice], "generation_metadata": None}, last]
    return (
        b"".join(f"data: {json.dumps(part)}\n\n".encode() for part in parts) + b"data: [DONE]\n\n"
    )


def test_timings_tell_what_it_brings():
    """How many tokens were drafted and accepted; 0 where it is on and does nothing."""
    metadata = {"mtp_drafts": 8, "mtp_accepted": 5}
    with Server(Dialect("m", script=lambda body: Reply(raw=events(metadata)))) as server:
        llm = ChatVllmMlx(model="m", base_url=server.base_url)
        chunks = list(llm.stream("hi"))
        server.dialect.script = lambda body: Reply(raw=events({"mtp_drafts": None}))
        plain = list(llm.stream("hi"))
    timings = chunks[-1].response_metadata["timings"]
    assert (timings["drafted_tokens"], timings["accepted_tokens"]) == (8, 5)
    assert "drafted_tokens" not in plain[-1].response_metadata["timings"]
    end = AnswerEnd("stop", "m", None, None, {})
    silent = add_times(end, Stopwatch(), "mtp").extra["timings"]
    assert (silent["drafted_tokens"], silent["accepted_tokens"]) == (0, 0)


def test_ps_asks_the_server_what_it_brings():
    """The server counts over all of its answers."""
    with Server(Dialect("m")) as server:
        endpoint = Endpoint(server.base_url, None, "m", draft="mtp")
        looks = []
        for status in ({"mtp": {"attempted": 10, "accepted": 7}}, {"mtp": {"enabled": False}}):
            server.dialect.status = lambda told=status: told
            look = StatusLook(endpoint)
            look.wait(5)
            looks.append(look.drafts)
    assert looks == [(10, 7), None]
    assert Serving.from_dict(Serving(draft="mtp").to_dict()).draft == "mtp"
