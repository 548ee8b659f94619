"""Waiting for processes, and ending them."""

import time

import psutil


def end_tree(process):
    """Kill a process and everything that it started."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.kill()
    for child in children:
        child.kill()
    process.communicate()
    psutil.wait_procs(children, timeout=10)


def wait_until(condition, process=None, limit=90.0):
    """Poll a condition; fails when time runs out or a process ends before."""
    deadline = time.monotonic() + limit
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate())
        if time.monotonic() > deadline:
            raise AssertionError("timed out")
        time.sleep(0.01)
