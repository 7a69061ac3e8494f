"""Storage that fails, for benchmark `faults`: shards behind a bad HTTP server."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TROUBLES = ("refuses", "hangs up", "ends early", "stalls", "changes a bit")
TROUBLED = 0.4  # share of the requests
LONGEST_STALL = 3.0  # seconds


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
