"""Folders in a bucket, s3://, gs:// or abfs://, by pyarrow, which finds credentials in the environment.

A bucket renames nothing. So a folder there has an object CHECKSUMS that is put last, the checksum of each
of its files: without it, or with other bytes than it says, the folder is not taken.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

import xxhash

from data_pipeline.outage import Outage
from data_pipeline.untrusted import one_line, parse_json
from data_pipeline.whole import CHECKSUMS, beside, checksum

SCHEMES = ("s3", "gs", "abfs", "abfss")
# What a URL may say beside the place: none of it is secret.
OPTIONS = {"region", "scheme", "endpoint_override", "project_id", "retry_limit_seconds", "enable_tls"}
PIECE = 1 << 24


def is_bucket(path: str) -> bool:
    """Whether a path is a place in a bucket."""
    return path.partition("://")[0] in SCHEMES and "://" in path


def check_bucket(name: str, url: str) -> None:
    """Refuse a URL without a bucket, or with what a run folder must not keep. Raises ValueError."""
    parts = urlsplit(url)
    unknown = dict(parse_qsl(parts.query, keep_blank_values=True)).keys() - OPTIONS
    user = parts.username if parts.scheme == "s3" else None
    if parts.password or user or unknown:  # whose values the message leaves out
        raise ValueError(
            f"{name}: a URL with {'credentials' if not unknown else sorted(unknown)[0]}; it may say "
            f"{', '.join(sorted(OPTIONS))}, credentials belong in the environment"
        )
    if not parts.netloc or parts.fragment:
        raise ValueError(f"{name}: {url} names no bucket; give {parts.scheme}://BUCKET/FOLDER")


def below(url: str, name: str) -> str:
    """The URL of `name` in the folder at a URL."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


class Bucket:
    """The folder at a URL. Every method raises ValueError where the store refuses, Outage if it fails."""

    def __init__(self, url: str):
        self.url = url
        parts = urlsplit(url)
        with self._told():
            from pyarrow.fs import FileSystem

            self._files, root = FileSystem.from_uri(urlunsplit(parts._replace(path="")))
        self._root = f"{root.rstrip('/')}/{unquote(parts.path).strip('/')}".rstrip("/")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise errors as one line; pyarrow raises NotImplementedError for what a store can't do."""
        try:
            yield
        except (PermissionError, FileNotFoundError, ValueError, NotImplementedError) as error:
            raise ValueError(self._line(error)) from None
        except OSError as error:
            raise Outage(self._line(error)) from None

    def _line(self, error: Exception) -> str:
        return f"{self.url}: {one_line(str(error))[:400]}"

    def listed(self) -> dict[str, int]:
        """Every file below, by its path from here, with its size."""
        from pyarrow.fs import FileSelector, FileType

        with self._told():
            everything = FileSelector(self._root, recursive=True, allow_not_found=True)
            found = self._files.get_file_info(everything)
        names = {info.path.removeprefix(f"{self._root}/"): info for info in found}
        return {
            name: info.size for name, info in names.items() if info.type == FileType.File and _inside(name)
        }

    def get(self, name: str) -> bytes | None:
        """A file's content; None where there is no such file."""
        with self._told():
            try:
                with self._files.open_input_stream(self._path(name)) as file:
                    return file.read()
            except FileNotFoundError:
                return None

    def put(self, name: str, content: bytes | Path) -> str:
        """Write a file, whole once this returns; its checksum."""
        digest = xxhash.xxh3_128()
        with self._told(), self._files.open_output_stream(self._path(name)) as out:
            for piece in (content,) if isinstance(content, bytes) else _pieces(content):
                out.write(piece)
                digest.update(piece)
        return digest.hexdigest()

    def put_folder(self, name: str, folder: Path, files: Iterable[str], check: Callable[[], None]) -> None:
        """Write these files of a folder and, unless `check` then raises, CHECKSUMS: it is whole."""
        record = {file: self.put(f"{name}/{file}", folder / file) for file in files}
        own = folder / CHECKSUMS  # of the files as they were meant to be, if the folder has it
        text = own.read_bytes() if own.is_file() else json.dumps(record, indent=2).encode()
        check()
        self.put(f"{name}/{CHECKSUMS}", text)

    def remove(self, *names: str) -> None:
        """Remove files, as far as they are there."""
        for name in names:
            with self._told(), suppress(FileNotFoundError):
                self._files.delete_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder, CHECKSUMS first: what a kill leaves of it does not pass for whole."""
        self.remove(f"{name}/{CHECKSUMS}")
        with self._told(), suppress(FileNotFoundError):
            self._files.delete_dir(self._path(name))

    def bring(self, name: str, target: Path, mark: bool = False) -> bool:
        """Make `target` what the folder `name` holds, where that is whole; says whether it is.

        An empty name is this folder itself. Nothing is fetched where `target` is the same already. With
        `mark` CHECKSUMS comes too.
        """
        if (text := self.get(f"{name}/{CHECKSUMS}")) is None:
            return False
        partial = beside(target)
        try:
            record = _record(text)
            if not _is_same(target, record):
                for file, said in record.items():
                    if self._fetch(f"{name}/{file}", partial / file) != said:
                        raise Damaged(f"{file} is missing or not what was sent")
                if mark:
                    (partial / CHECKSUMS).write_bytes(text)
                shutil.rmtree(target, ignore_errors=True)
                partial.replace(target)
        except Damaged as error:
            print(f"warning: {below(self.url, name)} is damaged ({error}) and is skipped", file=sys.stderr)
            return False
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return True

    def _fetch(self, name: str, path: Path) -> str:
        """Copy a file to this machine; its checksum, empty where there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = xxhash.xxh3_128()
        with self._told(), path.open("wb") as out:
            try:
                source = self._files.open_input_stream(self._path(name))
            except FileNotFoundError:
                return ""
            with source:
                while piece := source.read(PIECE):
                    out.write(piece)
                    digest.update(piece)
        return digest.hexdigest()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name.lstrip('/')}"


class Damaged(Exception):
    """A folder of a bucket that is not what was sent."""


def _record(text: bytes) -> dict[str, str]:
    try:
        record = dict(parse_json(text))
    except (TypeError, ValueError) as error:
        raise Damaged(f"{CHECKSUMS}: {error}") from None
    if not record or not all(_inside(file) for file in record):
        raise Damaged(f"{CHECKSUMS} names no files of the folder")
    return record


def _inside(name: object) -> bool:
    """Whether a name from a bucket is that of a file below the folder, wherever that lies."""
    return isinstance(name, str) and all(part not in ("", ".", "..") for part in name.split("/"))


def _is_same(folder: Path, record: dict[str, str]) -> bool:
    """Whether a folder holds these files and no others."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files.pop(CHECKSUMS, None)
    return files.keys() == record.keys() and all(checksum(files[name]) == record[name] for name in record)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
