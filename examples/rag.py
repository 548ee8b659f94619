"""Answers from a folder of text files, with embeddings and a reranker on this machine as well.

pip install langchain-classic
python examples/rag.py [MODEL [EMBEDDING_MODEL [RERANKER [FOLDER]]]]
"""

import sys
from pathlib import Path

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker

DEFAULTS = (
    "mlx-community/Qwen3-4B-4bit",
    "mlx-community/all-MiniLM-L6-v2-4bit",
    "cross-encoder/ms-marco-MiniLM-L6-v2",
    str(Path(__file__).parent / "documents"),
)
model, embedding_model, reranker, folder = [*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :]]

store = InMemoryVectorStore(VllmMlxEmbeddings(model=embedding_model))
store.add_documents(
    [Document(p.read_text(), metadata={"file": p.name}) for p in Path(folder).glob("*.txt")]
)
# Vectors find candidates; the cross-encoder, which reads them with the question, takes the best.
retriever = ContextualCompressionRetriever(
    base_compressor=VllmMlxReranker(model=reranker, top_n=1),
    base_retriever=store.as_retriever(search_kwargs={"k": 10}),
)
prompt = ChatPromptTemplate.from_template(
    "Answer in one sentence from this text:\n\n{text}\n\nQuestion: {question}"
)


def joined(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


llm = ChatVllmMlx(model=model, temperature=0, max_tokens=80)
chain = (
    {"text": retriever | joined, "question": RunnablePassthrough()}
    | prompt
    | llm
    | StrOutputParser()
)
for question in ("How many moons has Mars?", "When does the train to Vienna leave?"):
    (source,) = retriever.invoke(question)
    print(f"-- {source.metadata['file']} ({source.metadata['relevance_score']:.2f})")
    print(chain.invoke(question))
