"""The gateway that `env` starts once for a terminal."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
from faults.support import PATIENCE, Fake, eventually
from unit.cli.conftest import command


def answers_in_shell(script: str, count: int) -> list[dict[str, str]]:
    """Return what `env --json` says in a terminal of its own."""
    shell = subprocess.run(
        ["/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=8 * PATIENCE,
        start_new_session=True,
        check=False,
    )
    answers = [json.loads(f"{part}}}") for part in shell.stdout.split("}")[:-1]]
    assert len(answers) == count, shell.stderr
    return answers


def test_a_shell_that_asks_again_gets_the_same_gateway(fake: Fake, home: Path):
    """A profile or an `.envrc` asks each time; each had started one more process that stayed."""
    ask = shlex.join(command("env", str(fake.model), "--json"))
    other = shlex.join(command("env", str(fake.model), "--json", "--keep-alive", "3m"))
    script = f"{ask}; cd /; {ask}; {other}; rm {home}/.car/run/gateway.key; {ask}; true"
    found = []
    for _ in range(2):
        first, again, another, renewed = answers_in_shell(script, 4)
        assert first == again
        assert len({v["OPENAI_BASE_URL"] for v in (first, another, renewed)}) == 3
        assert renewed["OPENAI_API_KEY"] != first["OPENAI_API_KEY"]
        found.append(first)
    assert found[0]["OPENAI_BASE_URL"] != found[1]["OPENAI_BASE_URL"]


def test_a_gateway_ends_with_a_process_that_nobody_reaps(fake: Fake):
    """As in a container whose first process reaps none: the model stayed in memory for good."""
    with subprocess.Popen(["true"]) as ended:
        eventually(lambda: psutil.Process(ended.pid).status() == "zombie", "the end")
        done = subprocess.run(
            command("serve", str(fake.model), "--port", "0", "--until-pid", str(ended.pid)),
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 0, done.stderr


def test_a_gateway_of_another_folder_is_another_one(fake: Fake, tmp_path: Path):
    """What its server is told may name a file from there."""
    ask = shlex.join(command("env", str(fake.model), "--json", "--server-arg=--max-tokens=77"))
    script = f"cd /; {ask}; {ask}; cd {shlex.quote(str(tmp_path))}; {ask}; true"
    answers = answers_in_shell(script, 3)
    first, again, elsewhere = [answer["OPENAI_BASE_URL"] for answer in answers]
    assert first == again != elsewhere


def test_gateways_that_begin_together_have_one_key(home: Path):
    """Each reads the key that lasts, whoever made it."""
    script = (
        "from langchain_car_vllm.cli.gateway_process import find_key_file\n"
        "input(); print(find_key_file(None, '127.0.0.1').read_text())"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    keys = {process.communicate(timeout=PATIENCE)[0] for process in started}
    assert len(keys) == 1
    assert keys.pop().strip() == (home / ".car" / "run" / "gateway.key").read_text().strip()
