"""Tiny things that tests are made of: a vocabulary, a corpus, folders as trees of bytes."""

import hashlib
import json
import random
import re
import threading
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.grammar import DEGREES, FRAMES, NEGATIONS, NEGATIVE, POSITIVE, THINGS
from data_pipeline.packing import Row
from data_pipeline.shards import (
    MANIFEST,
    VERSION,
    Manifest,
    file_sha256,
    ids_dtype,
    write_manifest,
    write_shard,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def grammar_words() -> list[str]:
    """Every word of the made-up task, once."""
    frames = " ".join(frame.format(a="the", b="was") for frame, _ in FRAMES)
    others = " ".join([*NEGATIONS, *DEGREES, frames, "."]).split()
    return list(dict.fromkeys([*THINGS, *POSITIVE, *NEGATIVE, *others]))


def tiny_tokens() -> list[str]:
    """About 200 WordPiece tokens: the grammar's words, and letters to spell any other word."""
    return [*SPECIAL, *grammar_words(), *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def documents(count: int, seed: int) -> list[list[str]]:
    """Short documents of 3 to 9 sentences of 4 to 12 words."""
    rng, words = random.Random(seed), grammar_words()
    return [
        [" ".join(rng.choices(words, k=rng.randint(4, 12))) + " ." for _ in range(rng.randint(3, 9))]
        for _ in range(count)
    ]


def write_documents(path: Path, count: int, seed: int) -> Path:
    """Write documents as a txt: a sentence a line, a blank line between documents."""
    text = "\n\n".join("\n".join(document) for document in documents(count, seed))
    path.write_text(text + "\n", encoding="utf-8")
    return path


def python_in(markdown: str) -> list[str]:
    """The blocks of Python of a text in Markdown."""
    return re.findall(r"```python\n(.*?)```", markdown, re.S)


def indented(markdown: str) -> list[str]:
    """The indented lines of a text in Markdown, outside of fences, continued ones joined."""
    text = re.sub(r"```.*?```", "", markdown, flags=re.S).replace("\\\n", " ")
    return [line.strip() for line in re.findall("^    .+$", text, re.M)]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, to compare what a run wrote."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_shards(folder: Path, blocks: list[list[Row]], size: int, per_shard: int = 2) -> Manifest:
    """Write a shard folder of these blocks, rows of at most 16 tokens, as pregenerate does."""
    placed = []
    for number, start in enumerate(range(0, len(blocks), per_shard)):
        path = folder / f"shard-{number:06d}.tar"
        placed += write_shard(path, blocks[start : start + per_shard], ids_dtype(size))
    manifest = Manifest(
        version=VERSION,
        vocabulary="0" * 16,
        vocabulary_size=size,
        pad=0,
        max_length=16,
        packing={},
        seed=0,
        variants=1,
        rows=sum(map(len, blocks)),
        tokens=sum(len(row.ids) for block in blocks for row in block),
        documents=1,
        checksums={block.shard: file_sha256(folder / block.shard) for block in placed},
        blocks=placed,
    )
    write_manifest(folder, manifest)
    return manifest


def change_manifest(folder: Path, **changes: object) -> None:
    """Write a manifest with other content and the checksum that fits it."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) | changes
    del content["sha256"]
    text = json.dumps(content, sort_keys=True)
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


KEYS = {"aws_access_key_id": "bucket-key", "aws_secret_access_key": "bucket-secret"}


class BucketServer:
    """S3 over HTTP, with one bucket: moto's server, which keeps all in memory.

    Attributes:
        requests: Method and place of each.
        refuse: Whose place holds this is refused.
    """

    def __init__(self, address: str = "127.0.0.1"):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.requests: list[str] = []
        self.refuse = ""
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(address, 0, self._answer, threaded=True)
        self.endpoint = f"http://{address}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/bucket", method="PUT")).close()

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.requests.append(f"{request['REQUEST_METHOD']} {request['PATH_INFO']}")
        if self.refuse and self.refuse in request["PATH_INFO"]:
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"]
        return self._application(request, start)

    def url(self, folder: str) -> str:
        """The URL of a folder of the bucket."""
        return f"s3://bucket/{folder}?endpoint_override={self.endpoint}&region=us-east-1"

    def copy(self, run: str, folder: Path) -> Path:
        """Copy a run as it lies in the bucket, as `aws s3 cp --recursive` does."""
        for name, content in self.tree(run).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

    def names(self, folder: str) -> list[str]:
        """Paths of the objects below a folder, from there."""
        found = self._client().list_objects_v2(Bucket="bucket", Prefix=f"{folder}/").get("Contents", [])
        return [each["Key"].removeprefix(f"{folder}/") for each in found if not each["Key"].endswith("/")]

    def tree(self, folder: str) -> dict[str, bytes]:
        """Every object below a folder with its content, by its path from there."""
        client = self._client()
        content = {}
        for name in self.names(folder):
            with suppress(client.exceptions.NoSuchKey):  # a run at work has taken it away meanwhile
                answer = client.get_object(Bucket="bucket", Key=f"{folder}/{name}")
                content[name] = answer["Body"].read()
        return content

    def _client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **KEYS)

    def close(self) -> None:
        self._server.shutdown()
