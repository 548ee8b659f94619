"""Two nodes of Ray on this machine, each with a run state of its own; runs in Ray's environment.

    python ray_cluster.py FOLDER PORT

Deploys examples/scale_out/ray and says `{"event": "up"}`. Each line of standard input is something
to do: `nodes`, `kill` a replica's process, `drain` a node once another has come. It ends when its
standard input does.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

# Ray's agents take their time on a loaded machine; the raylet ends itself without them.
os.environ["RAY_agent_register_timeout_ms"] = "600000"  # noqa: SIM112
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING"] = "0"

import psutil
import ray
from ray import serve
from ray._private import services
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

EXAMPLE = Path(__file__).parents[1] / "examples" / "scale_out" / "ray"
PATIENCE = 600.0
_DRAIN_PREEMPTION = 2


_get_node = services.get_node


def get_node_patiently(*arguments: object) -> object:
    """Wait for a node longer than the half minute that Ray allows it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return _get_node(*arguments)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise


services.get_node = get_node_patiently
# All of it stays on the loopback interface.
services.get_node_ip_address = lambda *_, **__: "127.0.0.1"


def say(**what: object) -> None:
    """Tell the test."""
    print(json.dumps(what), flush=True)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Nodes:
    """The cluster; each node is a Mac with a CAR_HOME of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.cluster = Cluster()
        self._count = 0
        self.last = None

    @property
    def address(self) -> str:
        """Where the head answers; Ray names it after the network, where nobody listens."""
        return f"127.0.0.1:{self.cluster.address.rpartition(':')[2]}"

    def add(self, **arguments: object) -> None:
        """Add a node."""
        self._count += 1
        home = self._folder / f"mac-{self._count}"
        home.mkdir()
        self.last = self.cluster.add_node(
            num_cpus=4,
            env_vars={"CAR_HOME": str(home)},
            include_dashboard=False,
            node_ip_address="127.0.0.1",
            # A raylet that may choose them waits for its agents for a few seconds only.
            metrics_agent_port=free_port(),
            metrics_export_port=free_port(),
            runtime_env_agent_port=free_port(),
            dashboard_agent_listen_port=free_port(),
            object_store_memory=100_000_000,
            **arguments,
        )


def replicas() -> list[psutil.Process]:
    """Return the processes that hold a replica."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if "ServeReplica" in words and "Replica" in words and _is_ours(process):
            found.append(process)
    return found


def _is_ours(process: psutil.Process) -> bool:
    try:
        return process.environ().get("CAR_HOME", "").startswith(sys.argv[1])
    except psutil.Error:
        return False


def wait_until(condition, what: str) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.5)


def running() -> int:
    """Return how many replicas answer."""
    application = serve.status().applications.get("default")
    if application is None:
        return 0
    return application.deployments["Replica"].replica_states.get("RUNNING", 0)


def drain(nodes: Nodes) -> None:
    """Have a third Mac come and the second one go, as with `ray drain-node`."""
    leaving = nodes.last
    nodes.add()
    nodes.cluster.wait_for_nodes()
    client = GcsClient(address=nodes.address)
    deadline = int((time.time() + PATIENCE) * 1000)
    accepted = client.drain_node(leaving.node_id, _DRAIN_PREEMPTION, "it goes home", deadline)
    say(event="draining", accepted=str(accepted))
    alone = {"CAR_HOME": str(Path(sys.argv[1]) / "mac-2")}
    wait_until(
        lambda: not any(p.environ().get("CAR_HOME") == alone["CAR_HOME"] for p in replicas()),
        "the replica to leave",
    )
    wait_until(lambda: running() == 2, "the replica to be elsewhere")
    nodes.cluster.remove_node(leaving, allow_graceful=True)
    say(event="drained")


def main() -> None:
    """Run the cluster."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    sys.path.insert(0, str(EXAMPLE))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    nodes = Nodes(folder)
    nodes.add(dashboard_host="127.0.0.1")
    nodes.add()
    ray.init(address=nodes.address, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
    from deployment import app

    serve.run(app, blocking=False)
    wait_until(lambda: running() == 2, "both replicas")
    say(event="up", replicas=[process.pid for process in replicas()])
    for line in sys.stdin:
        match line.strip():
            case "kill":
                victim = replicas()[-1]
                os.kill(victim.pid, signal.SIGKILL)
                say(event="killed", pid=victim.pid)
            case "wait":
                wait_until(lambda: len(replicas()) == running() == 2, "both replicas")
                say(event="whole")
            case "drain":
                drain(nodes)
    serve.shutdown()
    ray.shutdown()
    nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
