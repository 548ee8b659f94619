"""Asks a model that was used here in other processes, each in one of Python's or joblib's ways."""

import multiprocessing
import sys

from joblib import Parallel, delayed

from langchain_car_vllm import ChatVllmMlx

WORDS = ["a", "b", "c", "d"]


def ask(model: ChatVllmMlx, question: str) -> str:
    """Ask in whatever process this is."""
    return model.invoke(question).text


def main(way: str) -> None:
    """Print the answers to the words, with one asked here before and after."""
    model = ChatVllmMlx(model="m")
    found = [ask(model, "first")]
    if way in ("spawn", "fork", "forkserver"):
        with multiprocessing.get_context(way).Pool(2) as pool:
            found += pool.starmap(ask, [(model, word) for word in WORDS])
    else:
        found += Parallel(n_jobs=2, backend=way)(delayed(ask)(model, word) for word in WORDS)
    print(*found, ask(model, "last"))


if __name__ == "__main__":
    main(sys.argv[1])
