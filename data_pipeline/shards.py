"""WebDataset shards of blocks: one tar member is a NumPy array of some hundreds of sequences.

A block is a flat integer array: the number of rows n, n lengths, n boundaries (where the second
segment begins), then all ids one after another. `manifest.json` beside the tars records each
block's place, size and checksum, and what the rows were made from; it is written last, so a
folder without it is not whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_pipeline.packing import Row

VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Rows:
    """Sequences of token ids, padded: ids (n, longest), lengths (n,), boundaries (n,)."""

    ids: np.ndarray
    lengths: np.ndarray
    boundaries: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, index: np.ndarray) -> Rows:
        """The rows at `index`, in its order."""
        return Rows(self.ids[index], self.lengths[index], self.boundaries[index])


def encode_block(rows: list[Row], dtype: np.dtype) -> np.ndarray:
    """Pack rows into one flat array."""
    lengths = [len(row.ids) for row in rows]
    boundaries = [row.boundary for row in rows]
    tokens = [token for row in rows for token in row.ids]
    return np.array([len(rows), *lengths, *boundaries, *tokens], dtype=dtype)


def decode_block(block: np.ndarray, width: int, pad: int) -> Rows:
    """Unpack a flat array into rows padded with `pad` to `width`."""
    count = int(block[0])
    lengths = block[1 : 1 + count].astype(np.int64)
    boundaries = block[1 + count : 1 + 2 * count].astype(np.int64)
    ids = np.full((count, width), pad, dtype=block.dtype)
    ids[np.arange(width) < lengths[:, None]] = block[1 + 2 * count :]
    return Rows(ids, lengths, boundaries)


def concatenate(parts: list[Rows]) -> Rows:
    """Rows of equal width, one after another."""
    return Rows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.boundaries for part in parts]),
    )


@dataclass(frozen=True)
class Block:
    """Where one block lies: shard file, byte offset of the array file, its size, checksum, rows."""

    shard: str
    offset: int
    size: int
    crc32: int
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What a shard folder holds; `blocks` in file order."""

    version: int
    vocabulary: str  # fingerprint
    vocabulary_size: int
    pad: int
    max_length: int
    packing: dict
    seed: int
    rows: int
    tokens: int
    documents: int
    checksums: dict[str, str]  # shard file -> sha256
    blocks: list[Block]


class ShardWriter:
    """Writes blocks into `folder` as shards of `blocks_per_shard` tar members each."""

    def __init__(self, folder: Path, vocabulary_size: int, blocks_per_shard: int):
        self.folder = folder
        self.dtype = np.dtype(np.uint16 if vocabulary_size <= 2**16 else np.uint32)
        self.blocks_per_shard = blocks_per_shard
        self.blocks: list[Block] = []
        self.tokens = 0
        self._tar: tarfile.TarFile | None = None

    def write(self, rows: list[Row]) -> None:
        """Append one block."""
        number = len(self.blocks)
        if number % self.blocks_per_shard == 0:
            self._open(f"shard-{number // self.blocks_per_shard:06d}.tar")
        assert self._tar is not None
        buffer = io.BytesIO()
        np.save(buffer, encode_block(rows, self.dtype), allow_pickle=False)
        data = buffer.getvalue()
        member = tarfile.TarInfo(f"{number:08d}.npy")  # WebDataset's naming: key, dot, kind
        member.size = len(data)
        offset = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(member, io.BytesIO(data))
        self.blocks.append(Block(self._name, offset, len(data), zlib.crc32(data), len(rows)))
        self.tokens += sum(len(row.ids) for row in rows)

    def _open(self, name: str) -> None:
        if self._tar:
            self._tar.close()
        self._name = name
        # USTAR headers take exactly one 512-byte record, which makes the offsets arithmetic.
        self._tar = tarfile.open(self.folder / name, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def close(self) -> dict[str, str]:
        """Finish the last shard; returns the checksum of every shard file."""
        if self._tar:
            self._tar.close()
        return {name: file_sha256(self.folder / name) for name in _unique(self.blocks)}


def _unique(blocks: Iterable[Block]) -> list[str]:
    return list(dict.fromkeys(block.shard for block in blocks))


def file_sha256(path: Path) -> str:
    """The checksum of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest beside and rename it, so that it is whole or absent."""
    content = asdict(manifest)
    content["blocks"] = [list(asdict(block).values()) for block in manifest.blocks]
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps(content, indent=None, sort_keys=True), encoding="utf-8")
    os.replace(partial, folder / MANIFEST)


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check a shard folder's manifest. Raises ValueError where it can't be used."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"shards: {folder} has no {MANIFEST}; give the shards/ folder of a finished pregenerate run"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["version"]
        if version == VERSION:
            content["blocks"] = [Block(*entry) for entry in content["blocks"]]
            manifest = Manifest(**content)
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"shards: {path} is damaged; run pregenerate again") from None
    if version != VERSION:
        raise ValueError(
            f"shards: {path} is of format version {version} and this release reads "
            f"{VERSION}; run pregenerate again"
        )
    for name in _unique(manifest.blocks):
        if Path(name).name != name or not (Path(folder) / name).is_file():
            raise ValueError(f"shards: {Path(folder) / name} is missing; run pregenerate again")
    return manifest


def read_block(folder: str | Path, block: Block, manifest: Manifest) -> Rows:
    """Read one block by its place and check it. Raises ValueError naming shard and offset."""
    with open(Path(folder) / block.shard, "rb") as file:
        file.seek(block.offset)
        data = file.read(block.size)
    if len(data) != block.size or zlib.crc32(data) != block.crc32:
        raise ValueError(
            f"shards: {Path(folder) / block.shard} is damaged at byte {block.offset} "
            "(checksum differs); run pregenerate again"
        )
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return decode_block(array, manifest.max_length, manifest.pad)
