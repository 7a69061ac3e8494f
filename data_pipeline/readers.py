"""Where a corpus lies, one class for each kind: text files, lines, tables, data sets, Wikipedia dumps.

A source says which pieces it is cut into and yields a piece's documents, each a text or a list of
lines. Sources are small and picklable: a worker process opens what it reads by itself.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Protocol
from xml.etree import ElementTree

from data_pipeline.outage import Outage
from data_pipeline.untrusted import parse_json
from data_pipeline.urls import file_system, is_url, url_told

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BUFFER = 1 << 20  # bytes
BOM = b"\xef\xbb\xbf"
DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": zstd.open,
}
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, zstd.ZstdError)
HUB = "hub:"
LONGEST_DOCUMENT = 1 << 20  # characters; a longer one is cut, so that memory stays bounded
LONGEST_LINE = 64 << 20  # bytes
ROWS = 1000  # rows of a table that are read together
TO_THE_END = 1 << 62


class Piece(NamedTuple):
    """A part of a source: from where to where, in the source's own units, and its bytes of text."""

    start: int
    stop: int
    size: int


class Source(Protocol):
    """One file, folder or data set of a corpus.

    Attributes:
        done: How many bytes of the piece at hand have been read, for progress.
    """

    done: int

    def pieces(self, size: int) -> list[Piece]:
        """Cut into pieces of about `size` bytes; one piece where it can only be read through."""
        ...

    def documents(self, piece: Piece) -> Iterator[str | list[str]]:
        """Yield a piece's documents."""
        ...


def source(path: str, by_line: bool, field: str) -> Source:
    """The source at `path`. Raises ValueError where it is of no known kind."""
    if path.startswith(HUB):
        return StreamedDataset(path, field)
    if not is_url(path) and Path(path).is_dir():
        return SavedDataset(path, field)
    name = _name(path)
    kind = name.with_suffix("").suffix if name.suffix in DECOMPRESSORS else name.suffix
    if kind == ".jsonl":
        return Lines(path, field=field)
    if kind == ".txt":
        return Lines(path) if by_line else Text(path)
    if kind == ".parquet":
        return Parquet(path, field)
    if kind == ".xml":
        return WikipediaDump(path)
    raise ValueError(
        f"corpus: {path} is of no known kind; give .txt or .jsonl (plain, .gz, .bz2, .xz or .zst), "
        ".parquet, a Wikipedia .xml.bz2 dump, a folder saved by `datasets`, or hub:NAME"
    )


def hub_parts(path: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of hub:NAME[,CONFIG[,SPLIT]]."""
    name, configuration, split = [*path.removeprefix(HUB).split(","), "", ""][:3]
    return name, configuration or None, split or "train"


def _name(path: str) -> PurePosixPath:
    """The name that tells a file's kind, in lower case, without the query of a signed URL."""
    return PurePosixPath((path.partition("?")[0] if is_url(path) else path).lower())


def expand_url(pattern: str) -> list[str]:
    """The URLs that a URL or a pattern of one stands for. Raises ValueError where there are none."""
    if "*" not in pattern:
        return [pattern]
    files, path = file_system(pattern)
    with url_told("corpus", pattern):
        found = sorted(files.unstrip_protocol(match) for match in files.glob(path))
    if not found:
        raise ValueError(f"corpus: nothing matches {pattern}; give an existing URL")
    return found


def _open(path: str) -> BinaryIO:
    # fsspec's own readline copies what it has fetched for every line.
    return io.BufferedReader(_Remote(path), BUFFER) if is_url(path) else open(path, "rb")


def _size(path: str) -> int:
    if not is_url(path):
        return os.path.getsize(path)
    files, inside = file_system(path)
    with url_told("corpus", path):
        return int(files.size(inside) or 0)


class _Remote(io.RawIOBase):
    """A file behind a URL; its errors are url_told's."""

    def __init__(self, url: str):
        self.url = url
        files, inside = file_system(url)
        with url_told("corpus", url):
            self._file = files.open(inside, "rb")

    def readinto(self, buffer: Any) -> int:
        with url_told("corpus", self.url):
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with url_told("corpus", self.url):
            return int(self._file.seek(offset, whence))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def whole_characters(text: str) -> str:
    """Replace lone surrogates, which JSON can hold and no tokenizer takes."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@dataclass
class _ByLines:
    """A file of lines, plain or compressed; a plain one can be read from any byte on."""

    path: str
    done: int = 0

    def pieces(self, size: int) -> list[Piece]:
        total = _size(self.path)
        if self._decompress or total <= size:
            return [Piece(0, TO_THE_END, total)]
        count = round(total / size)
        ends = [total * number // count for number in range(count + 1)]
        return [Piece(a, b, b - a) for a, b in pairwise(ends)]

    @property
    def _decompress(self) -> Callable[[Any], Any] | None:
        return DECOMPRESSORS.get(_name(self.path).suffix)

    def lines(self, start: int) -> Iterator[tuple[int, str]]:
        """Yield the lines that begin at byte `start` or later, each with its first byte's position."""
        decompress = self._decompress
        with _open(self.path) as raw:
            file = decompress(raw) if decompress else raw
            position = start
            try:
                if start:  # a line that begins exactly here is ours: its line end is the byte before
                    file.seek(start - 1)
                    position += len(file.readline(LONGEST_LINE)) - 1
                while line := file.readline(LONGEST_LINE):
                    if len(line) == LONGEST_LINE:
                        raise ValueError(
                            f"corpus: {self.path} at byte {position}: a line of more than 64 MB; is it a "
                            "text of lines?"
                        )
                    text = line.removeprefix(BOM) if position == 0 else line
                    yield position, text.decode("utf-8")
                    position += len(line)
                    self.done = raw.tell() if decompress else position - start
            except UnicodeDecodeError:
                raise ValueError(
                    f"corpus: {self.path} is not UTF-8 text at byte {position}; convert it, or leave it out"
                ) from None
            except DAMAGE as error:
                raise ValueError(
                    f"corpus: {self.path} is damaged after {position} bytes of text ({error}); "
                    "fetch it again, or leave it out"
                ) from None


@dataclass
class Text(_ByLines):
    """One sentence a line, blank lines between documents.

    A document belongs to the piece in which the last blank line before it begins, and is read to its
    end, wherever that lies: every document is read once, however the file is cut.
    """

    def documents(self, piece: Piece) -> Iterator[str | list[str]]:
        document: list[str] = []
        size, ours = 0, piece.start == 0
        for position, line in self.lines(piece.start):
            if not line.strip():
                if document:
                    yield document
                document, size, ours = [], 0, position < piece.stop
            elif ours:
                document.append(line)
                size += len(line)
                if size >= LONGEST_DOCUMENT:
                    yield document
                    document, size = [], 0
            if not ours and position >= piece.stop:
                return
        if document:
            yield document


@dataclass
class Lines(_ByLines):
    """A document a line: plain text, or the `field` of a JSON object."""

    field: str | None = None

    def documents(self, piece: Piece) -> Iterator[str | list[str]]:
        for position, line in self.lines(piece.start):
            if position >= piece.stop:
                return
            if line.strip():
                yield line if self.field is None else self._json(line, position)

    def _json(self, line: str, position: int) -> str:
        try:
            return _text(parse_json(line)[self.field])
        except (ValueError, KeyError, TypeError):
            earlier = takewhile(lambda line: line[0] < position, self.lines(0))
            number = 1 + sum(1 for _ in earlier)
            raise ValueError(
                f"corpus: {self.path} line {number} is no JSON object with text in the field "
                f'"{self.field}"; set --corpus.text_field'
            ) from None


@dataclass
class Parquet:
    """A document a row; pieces are runs of row groups."""

    path: str
    field: str
    done: int = 0

    def _file(self):
        from pyarrow.parquet import ParquetFile

        with _damage_told(self.path):
            # pyarrow's defaults read a row group whole, and one may hold a whole file.
            file = ParquetFile(_open(self.path), buffer_size=BUFFER, pre_buffer=False)
            names = file.schema_arrow.names
        if self.field not in names:
            raise ValueError(_no_column(self.path, self.field, names))
        return file

    def pieces(self, size: int) -> list[Piece]:
        with self._file() as file, _damage_told(self.path):
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        columns = [[group.column(n) for n in range(group.num_columns)] for group in groups]
        sizes = [
            sum(c.total_uncompressed_size for c in group if c.path_in_schema == self.field)
            for group in columns
        ]
        return _runs(sizes, size)

    def documents(self, piece: Piece) -> Iterator[str | list[str]]:
        self.done = 0
        with self._file() as file:
            stop = min(piece.stop, file.num_row_groups)
            with _damage_told(self.path):
                batches = file.iter_batches(ROWS, range(piece.start, stop), columns=[self.field])
            while True:
                with _damage_told(self.path):
                    if (batch := next(batches, None)) is None:
                        return
                    values = batch.column(0).to_pylist()
                yield from _texts(values, self.path, self.field)
                self.done += batch.nbytes


@dataclass
class SavedDataset:
    """A folder saved by `datasets`: a document a row."""

    path: str
    field: str
    done: int = 0

    def _rows(self):
        from datasets import Dataset, load_from_disk

        try:
            with _damage_told(self.path, FileNotFoundError):
                rows = load_from_disk(self.path)
        except FileNotFoundError:
            raise ValueError(
                f"corpus: {self.path} is no folder saved by `datasets`; give one, or a file of texts"
            ) from None
        if not isinstance(rows, Dataset):
            raise ValueError(f"corpus: {self.path} holds several splits; give the folder of one")
        if self.field not in rows.column_names:
            raise ValueError(_no_column(self.path, self.field, rows.column_names))
        return rows.select_columns([self.field])

    def pieces(self, size: int) -> list[Piece]:
        rows = self._rows()
        with _damage_told(self.path):
            total = rows.data.nbytes if len(rows) else 0
        count = max(1, round(total / size))
        ends = [len(rows) * number // count for number in range(count + 1)]
        return [Piece(a, b, total // count) for a, b in pairwise(ends)]

    def documents(self, piece: Piece) -> Iterator[str | list[str]]:
        rows = self._rows()
        for start in range(piece.start, piece.stop, ROWS):
            stop = min(start + ROWS, piece.stop)
            with _damage_told(self.path):
                values = list(rows[start:stop][self.field])
            yield from _texts(values, self.path, self.field)
            self.done = piece.size * (stop - piece.start) // (piece.stop - piece.start)


@dataclass
class StreamedDataset:
    """A data set that `datasets` streams from its hub or from a folder: hub:NAME[,CONFIG[,SPLIT]]."""

    path: str
    field: str
    done: int = 0

    def _rows(self):
        from datasets import load_dataset

        name, configuration, split = hub_parts(self.path)
        try:
            rows = load_dataset(name, configuration, split=split, streaming=True)
        except Exception as error:  # of many libraries and kinds: no such name, no network, a damaged file
            raise ValueError(f"corpus: {self.path} can't be streamed: {error}") from None
        if rows.column_names and self.field not in rows.column_names:
            raise ValueError(_no_column(self.path, self.field, rows.column_names))
        return rows

    def pieces(self, size: int) -> list[Piece]:
        count = self._rows().num_shards  # each is a piece: which of how many, and no known size
        return [Piece(number, count, size) for number in range(count)]

    def documents(self, piece: Piece) -> Iterator[str | list[str]]:
        rows = iter(self._rows().shard(piece.stop, piece.start))
        while True:
            with _damage_told(self.path):
                if (row := next(rows, None)) is None:
                    return
                value = row[self.field]
            yield from _texts([value], self.path, self.field)


@dataclass
class WikipediaDump:
    """Articles of a Wikipedia XML dump (pages-articles), their markup taken off; read through."""

    path: str
    done: int = 0

    def pieces(self, size: int) -> list[Piece]:
        _markup_parser()
        return [Piece(0, TO_THE_END, _size(self.path))]

    def documents(self, piece: Piece) -> Iterator[str | list[str]]:
        parser = _markup_parser()
        decompress = DECOMPRESSORS.get(_name(self.path).suffix)
        with _open(self.path) as raw:
            file = decompress(raw) if decompress else raw
            try:
                for markup in _articles(file):
                    self.done = raw.tell()
                    yield parser.parse(markup).strip_code()
            except Outage:
                raise
            except (ElementTree.ParseError, LookupError, ValueError, *DAMAGE) as error:
                raise ValueError(
                    f"corpus: {self.path} is damaged ({error}); fetch it again, or leave it out"
                ) from None


def _markup_parser():
    try:
        import mwparserfromhell
    except ImportError:
        raise ValueError(
            "corpus: Wikipedia dumps need the package mwparserfromhell: pip install -e '.[wikipedia]' in "
            "Distillery's folder"
        ) from None
    return mwparserfromhell


def _articles(file: BinaryIO) -> Iterator[str]:
    """Yield the wikitext of every article: pages of namespace 0 that are no redirect."""
    root = None
    for event, element in ElementTree.iterparse(file, events=("start", "end")):
        if root is None:
            root = element
        if event != "end" or not element.tag.endswith("}page"):
            continue
        namespace = element.tag.removesuffix("page")
        markup = element.findtext(f"{namespace}revision/{namespace}text")
        if element.findtext(f"{namespace}ns") == "0" and element.find(f"{namespace}redirect") is None:
            yield markup or ""
        root.clear()


@contextmanager
def _damage_told(path: str, *known: type[Exception]) -> Iterator[None]:
    """Turn a library's errors, but for Outage and `known`, into a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (Outage, *known)):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"corpus: {path} can't be read ({reason}); fetch it again, or leave it out"
        ) from None


def _no_column(path: str, field: str, names: Iterable[str]) -> str:
    return f'corpus: {path} has no column "{field}"; it has {", ".join(names)}; set --corpus.text_field'


def _text(value: object) -> str:
    """A field as text, null as an empty one. Raises TypeError, naming the type, for anything else."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is not None and not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return whole_characters(value or "")


def _texts(values: Iterable[object], path: str, field: str) -> Iterator[str]:
    """The texts of a column."""
    for value in values:
        try:
            yield _text(value)
        except TypeError as error:
            raise ValueError(
                f'corpus: {path} holds {error} in the column "{field}", where text is needed; '
                "set --corpus.text_field"
            ) from None


def _runs(sizes: list[int], size: int) -> list[Piece]:
    """Pieces of neighbours that have about `size` bytes together."""
    pieces: list[Piece] = []
    start = total = 0
    for number, one in enumerate(sizes, 1):
        total += one
        if total >= size or number == len(sizes):
            pieces.append(Piece(start, number, total))
            start, total = number, 0
    return pieces
