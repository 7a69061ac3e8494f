"""Storage and networks that fail, for benchmark `faults`: shards behind HTTP, ranks on two nodes.

python -m benchmarks.bad_networks FIRST SECOND WORDS...    a job's command on both of two namespaces
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.startup import COMMAND

TROUBLES = ("refuses", "hangs up", "ends early", "stalls", "changes a bit")
TROUBLED = 0.4  # share of the requests
LONGEST_STALL = 3.0  # seconds
NETWORK = "198.18.77.0/30"  # of a range kept for benchmarks (RFC 2544)
ADDRESSES = ("198.18.77.1", "198.18.77.2")
CARD = "eth0"  # of both nodes
GRACE = 60.0  # seconds that one node's processes have when the other's have failed


# -------------------------------------------------------------------------------- failing storage
@contextlib.contextmanager
def failing_storage(folder: Path, rng: random.Random) -> Iterator[tuple[str, Counter[str]]]:
    """Serve a folder by HTTP, many requests badly; gives its URL, and counts what went wrong."""
    counts: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            """Answer, or not, with a file or a range of its bytes."""
            trouble = rng.choice(TROUBLES) if rng.random() < TROUBLED else ""
            if trouble:
                counts[trouble] += 1
            if trouble == "hangs up":
                return
            if trouble == "stalls":
                time.sleep(rng.uniform(0.5, LONGEST_STALL))
            content = bytearray((folder / self.path.lstrip("/")).read_bytes())
            if wanted := self.headers.get("Range", "").removeprefix("bytes="):
                begin, end = wanted.split("-")
                content = content[int(begin) : int(end) + 1]
            self.send_response(503 if trouble == "refuses" else 206 if wanted else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if trouble == "changes a bit":
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            if trouble == "ends early":
                del content[rng.randrange(len(content)) :]
            with contextlib.suppress(ConnectionError):  # the reader was killed
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", counts
        finally:
            server.shutdown()


# -------------------------------------------------------------------------------------- two nodes
def has_namespaces() -> bool:
    """Whether two nodes can be made here: by root on Linux, with iproute2."""
    made = os.geteuid() == 0 and shutil.which("ip") and shutil.which("ss")
    return bool(made) and subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0


@contextlib.contextmanager
def two_nodes(first: str, second: str) -> Iterator[None]:
    """Network namespaces of these names, a cable between them."""
    names = first, second
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", first, "link", "add", CARD, "type", "veth", "peer", "name", CARD, "netns", second)
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/30", "dev", CARD)
            for card in ("lo", CARD):
                ip("-n", name, "link", "set", card, "up")
        yield
    finally:
        for name in names:
            end_processes(name)
            subprocess.run(["ip", "netns", "delete", name], check=False)


def ip(*words: str) -> None:
    """Run iproute2's command."""
    subprocess.run(["ip", *words], check=True)


def plug(node: str, state: str) -> None:
    """Plug a node's cable in, `up`, or pull it, `down`: nothing arrives any more, and nobody is told."""
    ip("-n", node, "link", "set", CARD, state)


def reset(node: str) -> None:
    """Close every connection of a node under those who use it, as a firewall that forgets does."""
    words = ["ip", "netns", "exec", node, "ss", "--kill", "--tcp", "state", "established", "dst"]
    subprocess.run([*words, NETWORK], check=True, stdout=subprocess.DEVNULL)


def on_two_nodes(names: tuple[str, str], words: list[str]) -> list[str]:
    """The command that runs a job with one process on each node."""
    return [sys.executable, "-m", "benchmarks.bad_networks", *names, *words]


def main(names: list[str], words: list[str]) -> int:
    """Run a job's command in both namespaces as slurm/train.sbatch does on nodes; returns an exit code.

    When one node's has failed the other's has a minute to end, as there.
    """
    nodes = []
    for number, name in enumerate(names):
        place = {
            "SLURM_JOB_ID": "1",
            "SLURM_NODEID": str(number),
            "SLURM_STEP_NUM_NODES": "2",
            "DISTILLERY_HOSTS": " ".join(ADDRESSES),
        }
        command = ["ip", "netns", "exec", name, *COMMAND, *words, "--on=node", "--processes=1", "--resume"]
        nodes.append(subprocess.Popen(command, env={**os.environ, **place}))
    while all(node.poll() is None for node in nodes):
        time.sleep(0.1)
    begun = time.monotonic()
    while any(node.poll() is None for node in nodes):
        time.sleep(0.1)
        if any(node.poll() for node in nodes) and time.monotonic() - begun > GRACE:
            for name in names:
                end_processes(name)
    return max(abs(node.wait()) for node in nodes)


def end_processes(name: str) -> None:
    """Kill what runs in a namespace."""
    found = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
    for process in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:3], sys.argv[3:]))
