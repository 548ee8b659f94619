"""Answers from a folder of text files, with embeddings on this machine as well.

python examples/rag.py [MODEL [EMBEDDING_MODEL [FOLDER]]]
"""

import sys
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings

MODEL, EMBEDDINGS, FOLDER = (
    "mlx-community/Qwen3-4B-4bit",
    "mlx-community/all-MiniLM-L6-v2-4bit",
    str(Path(__file__).parent / "documents"),
)
model, embedding_model, folder = [*sys.argv[1:], *(MODEL, EMBEDDINGS, FOLDER)[len(sys.argv) - 1 :]]

store = InMemoryVectorStore(VllmMlxEmbeddings(model=embedding_model))
store.add_documents(
    [Document(p.read_text(), metadata={"file": p.name}) for p in Path(folder).glob("*.txt")]
)
retriever = store.as_retriever(search_kwargs={"k": 1})
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
    print(f"-- {source.metadata['file']}")
    print(chain.invoke(question))
