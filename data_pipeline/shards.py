"""WebDataset shards of blocks: one tar member is a NumPy array of some hundreds of sequences.

A block is a flat integer array: the number of rows n, n lengths, n boundaries (where the second
segment begins), then all ids one after another. `manifest.json` beside the tars records each
block's place, size and checksum, and what the rows were made from; it is written last, so a
folder without it is not whole. The manifest carries a checksum of itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash

from data_pipeline.packing import Row
from data_pipeline.untrusted import parse_json
from data_pipeline.whole import beside, to_disk, write_whole

VERSION = 2
MANIFEST = "manifest.json"
LARGEST_BLOCK = 1 << 28  # token places of a block, padding included


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

    def slice(self, begin: int, end: int) -> Rows:
        """Rows `begin` to `end`, not copied."""
        return Rows(self.ids[begin:end], self.lengths[begin:end], self.boundaries[begin:end])


def encode_block(rows: list[Row], dtype: np.dtype) -> np.ndarray:
    """Pack rows into one flat array."""
    lengths = [len(row.ids) for row in rows]
    boundaries = [row.boundary for row in rows]
    tokens = chain.from_iterable(row.ids for row in rows)
    size = 1 + 2 * len(rows) + sum(lengths)
    return np.fromiter(chain([len(rows)], lengths, boundaries, tokens), dtype=dtype, count=size)


def decode_block(block: np.ndarray, width: int, pad: int) -> Rows:
    """Unpack a flat array into rows padded with `pad` to `width`. Raises ValueError for any other array."""
    count = int(block[0]) if len(block) else 0
    lengths = block[1 : 1 + count].astype(np.int64)
    boundaries = block[1 + count : 1 + 2 * count].astype(np.int64)
    flat = block[1 + 2 * count :]
    if not count or len(boundaries) != count or lengths.sum() != len(flat) or lengths.max() > width:
        raise ValueError("it is no block of rows")
    if len(flat) == count * width:  # no row is padded
        return Rows(flat.reshape(count, width), lengths, boundaries)
    ids = np.full((count, width), pad, dtype=block.dtype)
    ids[np.arange(width) < lengths[:, None]] = flat
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
    """Where one block lies: shard file, its .npy file's byte offset, bytes and XXH3 checksum, and rows.

    `variant` numbers the packing of the corpus that it belongs to (PregenerateConfig.variants).
    """

    shard: str
    offset: int
    size: int
    xxh3: int
    rows: int
    variant: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a shard folder holds; `blocks` in file order, `rows` and `tokens` over all variants."""

    version: int
    vocabulary: str  # fingerprint
    vocabulary_size: int
    pad: int
    max_length: int
    packing: dict
    seed: int
    variants: int
    rows: int
    tokens: int
    documents: int
    checksums: dict[str, str]  # shard file -> sha256
    blocks: list[Block]


def write_shard(path: Path, blocks: Iterable[list[Row]], dtype: np.dtype, variant: int = 0) -> list[Block]:
    """Write one shard file beside and rename it; returns where its blocks lie."""
    partial = beside(path)
    placed = []
    # USTAR headers take exactly one 512-byte record, which makes the offsets arithmetic.
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, rows in enumerate(blocks):
            buffer = io.BytesIO()
            np.save(buffer, encode_block(rows, dtype), allow_pickle=False)
            data = buffer.getvalue()
            # WebDataset's naming: key, dot, kind; a key occurs once in the whole folder.
            member = tarfile.TarInfo(f"{path.stem}-{number:05d}.npy")
            member.size = len(data)
            offset = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(member, io.BytesIO(data))
            placed.append(
                Block(path.name, offset, len(data), xxhash.xxh3_64_intdigest(data), len(rows), variant)
            )
    to_disk(partial)  # before pregenerate writes the record that says so
    os.replace(partial, path)
    return placed


def ids_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest dtype that a block's entries fit in."""
    return np.dtype(np.uint16 if vocabulary_size <= 2**16 else np.uint32)


def file_sha256(path: Path) -> str:
    """The checksum of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest; it is whole or absent."""
    content = asdict(manifest)
    content["blocks"] = [list(asdict(block).values()) for block in manifest.blocks]
    content["sha256"] = _content_sha256(content)
    write_whole(folder / MANIFEST, json.dumps(content, sort_keys=True))


def _content_sha256(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parse_manifest(data: bytes, place: str) -> Manifest:
    """A manifest from its bytes; `place` is for messages. Raises ValueError where it can't be used."""
    damaged = f"shards: {place} is damaged; run pregenerate again"
    try:
        content = parse_json(data)
        version = content["version"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(damaged) from None
    said = content.pop("sha256", None)  # the first versions had none
    is_intact = said == _content_sha256(content)
    if version != VERSION and isinstance(version, int) and (is_intact or said is None):
        raise ValueError(
            f"shards: {place} is of format version {version} and this release reads {VERSION}; "
            "run pregenerate again"
        )
    if not is_intact:
        raise ValueError(damaged)
    try:
        content["blocks"] = [Block(*entry) for entry in content["blocks"]]
        manifest = Manifest(**content)
        if not _is_plausible(manifest):
            raise ValueError(damaged)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise ValueError(damaged) from None
    for name in {block.shard for block in manifest.blocks}:
        if Path(name).name != name:
            raise ValueError(f"shards: {place} names a file outside its folder, {name}; don't use it")
    return manifest


def _is_plausible(manifest: Manifest) -> bool:
    """Whether a manifest's values have the right types, and none would make a reader take all memory."""
    counts = [manifest.version, manifest.pad, manifest.seed, manifest.tokens, manifest.documents]
    counts += [
        n for block in manifest.blocks for n in (block.offset, block.size, block.xxh3, block.variant)
    ]
    sizes = [manifest.vocabulary_size, manifest.max_length, manifest.variants]
    sizes += [block.rows for block in manifest.blocks]
    texts = [manifest.vocabulary, *manifest.checksums, *manifest.checksums.values()]
    texts += [block.shard for block in manifest.blocks]
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and all(type(size) is int and size > 0 for size in sizes)
        and all(isinstance(text, str) for text in texts)
        and isinstance(manifest.packing, dict)
        and manifest.rows == sum(block.rows for block in manifest.blocks)
        and all(block.rows * manifest.max_length <= LARGEST_BLOCK for block in manifest.blocks)
        and all(block.variant < manifest.variants for block in manifest.blocks)
        and manifest.pad < manifest.vocabulary_size <= 1 << 32
    )


def parse_block(data: bytes, block: Block, manifest: Manifest) -> Rows:
    """A block from its bytes. Raises ValueError where they are not what was written."""
    if len(data) != block.size:
        raise ValueError(f"{len(data)} bytes of {block.size} there")
    if xxhash.xxh3_64_intdigest(data) != block.xxh3:
        raise ValueError("checksum differs")
    begin = 10 + int.from_bytes(data[8:10], "little")  # .npy format 1.0: magic, header's length, header
    array = np.frombuffer(data, ids_dtype(manifest.vocabulary_size), offset=begin)
    if not len(array) or array[0] != block.rows:
        raise ValueError("it is no block of rows")
    return decode_block(array, manifest.max_length, manifest.pad)
