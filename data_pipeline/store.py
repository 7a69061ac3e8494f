"""Bytes of shard folders: on a local path, or behind a URL with retries and a bounded local cache.

A URL is read block by block (a byte range of a shard), never by whole files: a rank fetches what it
trains on. Cached blocks are files; the least recently used go when the folder outgrows its bound,
and processes share it. A block is checked when it is parsed, wherever it came from.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import xxhash

from data_pipeline.outage import Outage
from data_pipeline.settings import StoreConfig
from data_pipeline.shards import MANIFEST, Block, Manifest, Rows, parse_block, parse_manifest
from data_pipeline.urls import file_system, is_url
from data_pipeline.whole import beside

T = TypeVar("T")

FIRST_WAIT = 0.5  # seconds before the first retry; doubled before each further one
LONGEST_WAIT = 60.0
PRUNE_EVERY = 64 << 20  # bytes written, at least, from one look at the cache's size to the next
ALLOW = "let this user read it, or give the store's keys"
REMEDY = "copy it again from a whole one or run pregenerate again, or set --stream.damaged skip"


class DamagedBlock(ValueError):
    """A block that is missing or damaged for good, unlike one behind an Outage."""


class ShardFolder:
    """A shard folder, local or behind a URL, and its manifest.

    Raises ValueError where the manifest can't be used.
    """

    def __init__(self, folder: str, config: StoreConfig | None = None):
        self.folder = folder.rstrip("/")
        self.config = config or StoreConfig()
        self.is_local = not is_url(folder)
        self.manifest, self.identity = self._manifest()

    def _manifest(self) -> tuple[Manifest, str]:
        """The manifest, and a hash of its content."""
        place = f"{self.folder}/{MANIFEST}"

        def parsed(content: bytes) -> tuple[Manifest, str]:
            return parse_manifest(content, place), xxhash.xxh3_64_hexdigest(content)

        try:
            if self.is_local:
                return parsed(Path(place).read_bytes())
            self._files, inside = file_system(self.folder)  # not retried: waiting would not mend it
            self._inside = inside.rstrip("/")
            return self._retried(lambda: parsed(self._files.cat_file(f"{self._inside}/{MANIFEST}")))
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"shards: {self.folder} has no {MANIFEST}; give the shards/ folder of a finished "
                "pregenerate run"
            ) from None
        except PermissionError:
            raise ValueError(f"shards: {place} may not be read; {ALLOW}") from None
        except ValueError:
            raise
        except Exception as error:  # each protocol's library has errors of its own
            raise Outage(f"shards: {place} can't be read: {error}") from None

    def refuse_missing(self) -> None:
        """Raise ValueError where a local shard file is missing."""
        for shard in self.manifest.checksums:
            if self.is_local and not (Path(self.folder) / shard).is_file():
                raise ValueError(f"shards: {self.folder}/{shard} is missing; {REMEDY}")

    def block(self, number: int) -> Rows:
        """Read block `number` of the manifest.

        Raises DamagedBlock, naming shard and offset, where it is missing or not what was written, and
        Outage where its store does not answer.
        """
        block = self.manifest.blocks[number]
        place = f"{self.folder}/{block.shard}"
        try:
            if self.is_local:
                return self._local(block)
            return self._retried(lambda: self._remote(block))
        except FileNotFoundError:
            raise DamagedBlock(f"shards: {place} is missing; {REMEDY}") from None
        except ValueError as error:
            raise DamagedBlock(
                f"shards: {place} is damaged at byte {block.offset} ({error}); {REMEDY}"
            ) from None
        except PermissionError:
            raise ValueError(f"shards: {place} may not be read; {ALLOW}") from None
        except Exception as error:  # each protocol's library has errors of its own
            if not self.is_local and self._ends_before(block):
                raise DamagedBlock(
                    f"shards: {place} is damaged: it ends before byte {block.offset + block.size}; {REMEDY}"
                ) from None
            tries = 1 if self.is_local else 1 + self.config.retries
            raise Outage(f"shards: {place} can't be read in {tries} attempts: {error}") from None

    def _local(self, block: Block) -> Rows:
        with open(f"{self.folder}/{block.shard}", "rb") as file:
            file.seek(block.offset)
            return parse_block(file.read(block.size), block, self.manifest)

    def _remote(self, block: Block) -> Rows:
        with suppress(ValueError, OSError):  # what is damaged or can't be read here is fetched again
            if self._cache and (kept := self._cache.get(self._key(block))) is not None:
                return parse_block(kept, block, self.manifest)
        begin, end = block.offset, block.offset + block.size
        data = self._files.cat_file(f"{self._inside}/{block.shard}", start=begin, end=end)
        if len(data) > block.size:
            raise OSError(f"the server of {self.folder} answers byte ranges with whole files; use another")
        rows = parse_block(data, block, self.manifest)
        if self._cache:
            try:
                self._cache.put(self._key(block), data)
            except OSError as error:  # a full disk stops no training
                print(f"warning: {self.config.cache} keeps nothing more: {error}", file=sys.stderr)
                self._cache = None
        return rows

    def _ends_before(self, block: Block) -> bool:
        """Whether a file behind a URL is too short for the block: servers refuse ranges beyond the end."""
        with suppress(Exception):  # where its size can't be told, it is not known to be short
            return bool(self._files.size(f"{self._inside}/{block.shard}") < block.offset + block.size)
        return False

    def _key(self, block: Block) -> str:
        name = f"{self.folder}/{block.shard}@{block.offset}:{block.xxh3}"
        return hashlib.sha256(name.encode()).hexdigest()

    def sha256(self, shard: str) -> str:
        """The checksum of a whole shard file. Raises FileNotFoundError where it is missing."""
        digest = hashlib.sha256()
        place = f"{self.folder}/{shard}"
        with open(place, "rb") if self.is_local else self._files.open(f"{self._inside}/{shard}") as file:
            while piece := file.read(1 << 20):  # hashlib.file_digest needs what HDFS's files lack
                digest.update(piece)
        return digest.hexdigest()

    @cached_property
    def _cache(self) -> BlockCache | None:
        if not self.config.cache:
            return None
        try:
            return BlockCache(Path(self.config.cache).expanduser(), int(self.config.cache_gb * 1e9))
        except OSError as error:
            print(f"warning: {self.config.cache} can't be used: {error}", file=sys.stderr)
            return None

    def _retried(self, read: Callable[[], T]) -> T:
        """Call `read`, again after a failure; not for a missing file, which waiting does not mend."""
        for attempt in range(self.config.retries):
            try:
                return read()
            except FileNotFoundError:
                raise
            except Exception:
                time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.75, 1.25))
        return read()


class BlockCache:
    """A folder of files by key, of `bound` bytes at most; several processes may use one folder."""

    def __init__(self, folder: Path, bound: int):
        self.folder, self.bound = folder, bound
        self.folder.mkdir(parents=True, exist_ok=True)
        self._prune()

    def get(self, key: str) -> bytes | None:
        """The bytes kept under `key`, or None."""
        path = self.folder / key
        try:
            data = path.read_bytes()
            os.utime(path)  # the least recently used go first
        except FileNotFoundError:
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes under `key`."""
        partial = beside(self.folder / key)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, self.folder / key)
        self._until_prune -= len(data)
        if self._until_prune <= 0:
            self._prune()

    def _prune(self) -> None:
        """Remove the least recently used files until an eighth of the bound is free.

        Comes again when an eighth of the free room is written: not more often, for it looks at every
        file, nor more rarely, for other processes fill the folder as well.
        """
        self._until_prune = least = min(PRUNE_EVERY, self.bound // 8)  # other threads don't prune meanwhile
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    files.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.bound * 7 // 8:
                break
            with suppress(FileNotFoundError):
                os.remove(path)
            total -= size
        self._until_prune = max(least, (self.bound - total) // 8)
