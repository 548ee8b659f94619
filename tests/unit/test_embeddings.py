"""What embeddings are used for beside one text: batches, loops, failures, copies."""

import asyncio
import copy
import itertools
import pickle
from collections.abc import Iterator

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from langchain_core import exceptions as core
from langchain_core.documents import Document

from langchain_car_vllm import VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.errors import ConfigurationError


@pytest.fixture
def server() -> Iterator[Server]:
    """A served embedding model."""
    with Server(Dialect("e")) as running:
        yield running


@pytest.fixture
def embeddings(server: Server) -> VllmMlxEmbeddings:
    """Embeddings for it, in batches of three."""
    return VllmMlxEmbeddings(model="e", base_url=server.base_url, batch_size=3)


def test_many_texts_go_in_batches_and_come_back_in_order(embeddings, server):
    """Also where the server sends them in another order, and without a text nobody is asked."""
    server.dialect.vectors = lambda data: data[::-1]
    texts = [f"text {n} of many" for n in range(7)]
    found = embeddings.embed_documents(texts)
    assert server.dialect.paths.count("/v1/embeddings") == 3
    assert found == [embeddings.embed_query(text) for text in texts]
    assert asyncio.run(embeddings.aembed_documents(texts)) == found
    before = len(server.dialect.paths)
    assert embeddings.embed_documents([]) == []
    assert len(server.dialect.paths) == before


def test_a_second_event_loop_works(embeddings):
    """Each has a client of its own."""
    first, second = (asyncio.run(embeddings.aembed_query("a b")) for _ in range(2))
    assert first == second == embeddings.embed_query("a b")


def test_a_text_that_is_too_long_is_told_in_the_servers_words(embeddings):
    """It is never cut off in silence."""
    with pytest.raises(core.ModelInvalidRequestError, match="more than 512 tokens"):
        embeddings.embed_documents(["short", "word " * 600])


def test_vectors_of_another_length_in_a_later_batch_are_a_typed_error(embeddings, server):
    """Behind a gateway another model may answer; a store would refuse them, or worse, not."""
    lengths = itertools.cycle([3, 4])

    def vectors(data):
        length = next(lengths)
        return [{**entry, "embedding": [0.5] * length} for entry in data]

    server.dialect.vectors = vectors
    with pytest.raises(core.ModelAPIError, match="different lengths"):
        embeddings.embed_documents(list("abcdef"))
    with pytest.raises(core.ModelAPIError, match="different lengths"):
        asyncio.run(embeddings.aembed_documents(list("abcdef")))


def test_texts_may_come_in_anything_that_yields_them(embeddings):
    """A generator, a set, the names of a dictionary."""
    wanted = embeddings.embed_documents(["a", "b", "c", "d"])
    assert embeddings.embed_documents(letter for letter in "abcd") == wanted
    assert embeddings.embed_documents(dict.fromkeys("abcd").keys()) == wanted
    assert asyncio.run(embeddings.aembed_documents(iter("abcd"))) == wanted


def test_half_a_character_in_a_document_ends_nothing(embeddings, server):
    """Whoever reads a thousand pages did not write them."""
    texts, whole = ["a\ud800b", "\ud83d\ude00"], ["a\N{REPLACEMENT CHARACTER}b", "\U0001f600"]
    assert embeddings.embed_documents(texts) == embeddings.embed_documents(whole)
    assert asyncio.run(embeddings.aembed_query(texts[0])) == embeddings.embed_query(whole[0])
    reranker = VllmMlxReranker(model="e", base_url=server.base_url)
    expected = reranker.rerank(whole, whole[0])
    assert reranker.rerank(texts, texts[0]) == expected
    assert asyncio.run(reranker.arerank(texts, texts[0])) == expected


@pytest.mark.parametrize(
    "odd", [None, 5, {"a": "b"}, [None], ["a", 5], [b"x"], [["a"]], [[1, 2]], [Document("a")]]
)
def test_what_is_no_list_of_texts_is_refused(embeddings, server, odd):
    """Nobody is asked; other servers would take numbers for tokens, and answer."""
    reranker = VllmMlxReranker(model="e", base_url=server.base_url)
    before = len(server.dialect.paths)
    for call in (embeddings.embed_documents, lambda texts: reranker.rerank(texts, "query")):
        with pytest.raises(ConfigurationError, match="string"):
            call(odd)
    for acall in (embeddings.aembed_documents, lambda texts: reranker.arerank(texts, "query")):
        with pytest.raises(ConfigurationError, match="string"):
            asyncio.run(acall(odd))
    assert len(server.dialect.paths) == before


@pytest.mark.parametrize("odd", [None, 5, b"x", ["a"], Document("a")])
def test_a_query_that_is_no_text_is_refused(embeddings, server, odd):
    """Of embeddings and of a reranker, which is not asked about nothing either."""
    reranker = VllmMlxReranker(model="e", base_url=server.base_url)
    for call in (
        lambda: embeddings.embed_query(odd),
        lambda: asyncio.run(embeddings.aembed_query(odd)),
        lambda: reranker.rerank(["a"], odd),
        lambda: asyncio.run(reranker.arerank([], odd)),
    ):
        with pytest.raises(ConfigurationError, match="query must be a string"):
            call()


@pytest.mark.parametrize(
    "vectors",
    [
        lambda data: data[:-1],
        lambda data: [{**entry, "embedding": "text"} for entry in data],
        lambda data: [{"embedding": entry["embedding"]} for entry in data],
        lambda data: [{**entry, "embedding": [10**400]} for entry in data],
        lambda data: [{**entry, "embedding": [float("nan")]} for entry in data],
        lambda data: [{**entry, "index": [entry["index"], {}]} for entry in data],
        lambda data: [{**entry, "index": 0} for entry in data],
        lambda data: [{**entry, "embedding": []} for entry in data],
        lambda data: [{**entry, "embedding": [0.5] * entry["index"]} for entry in data],
        lambda data: [{**entry, "embedding": [0.5] * (entry["index"] + 1)} for entry in data],
        lambda data: None,
        lambda data: 5,
    ],
)
def test_what_is_no_list_of_vectors_is_a_typed_error(embeddings, server, vectors):
    """Too few of them would shift texts and vectors against each other."""
    server.dialect.vectors = vectors
    with pytest.raises(core.ModelAPIError, match="vectors"):
        embeddings.embed_documents(["a", "b"])
    with pytest.raises(core.ModelAPIError, match="vectors"):
        asyncio.run(embeddings.aembed_documents(["a", "b"]))


@pytest.mark.parametrize("text", ["abc", b"abc"])
def test_one_text_is_not_taken_for_as_many_as_it_has_letters(embeddings, server, text):
    """Each letter would get a vector, and nobody would notice."""
    with pytest.raises(ConfigurationError, match="a list of strings"):
        embeddings.embed_documents(text)
    with pytest.raises(ConfigurationError, match="a list of strings"):
        asyncio.run(embeddings.aembed_documents(text))
    reranker = VllmMlxReranker(model="m", base_url=server.base_url)
    with pytest.raises(ConfigurationError, match="a list of strings"):
        reranker.rerank(text, "query")
    assert "/v1/embeddings" not in server.dialect.paths


def test_nobody_listening_is_a_connection_error():
    """It names the address."""
    with pytest.raises(core.ModelConnectionError, match=r"127\.0\.0\.1:9"):
        VllmMlxEmbeddings(model="e", base_url="http://127.0.0.1:9/v1").embed_query("a")


def test_used_embeddings_survive_pickle_and_copies(embeddings):
    """No client sticks to the object."""
    expected = embeddings.embed_query("a b")
    for other in (pickle.loads(pickle.dumps(embeddings)), copy.deepcopy(embeddings)):
        assert other.embed_query("a b") == expected


def test_they_ask_for_a_server_of_their_own():
    """Another than a chat model of the same name would have."""
    found = VllmMlxEmbeddings(model="org/embedder", keep_alive="1h")._spec(kind="embeddings")
    assert (found.kind, found.keep_alive) == ("embeddings", 3600)
    assert found.key() != VllmMlxEmbeddings(model="org/embedder")._spec().key()


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("batch_size", 0, "batch_size"),
        ("timeout", -1, "timeout"),
        ("batchsize", 3, "batch_size"),
        ("openai_api_base", "x", "base_url"),
        ("chunk_size", 5, "batch_size"),
    ],
)
def test_what_cannot_work_is_refused_by_name(name, value, right):
    """With the right name where another was meant."""
    with pytest.raises(ConfigurationError, match=name) as caught:
        VllmMlxEmbeddings(model="org/embedder", **{name: value})
    assert right in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        VllmMlxEmbeddings(model="org/embedder", nonsense=1)
    assert caught.value.hint is None
