"""Vectors of given words: read from a file of any usual kind, or trained on a corpus.

Files are read once, in pieces, and only the words that are asked for are kept, so that a file of
millions of words needs no more memory than the vocabulary. Nothing in them is ever run.

Kinds, told apart by their content:
    GloVe text      "word x1 ... xn" a line                       (.txt, .gz)
    word2vec text   the same after a line "words width"; fastText's .vec too
    word2vec binary after that line: word, a space, float32 x n   (.bin)
    fastText .bin   the model: words unknown to it get the mean of their n-grams
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, cast

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from tokenizers import Tokenizer

from data_pipeline.words import SPECIAL, known_words

FASTTEXT_MAGIC = 793712314
HEADER = re.compile(rb"(\d{1,12}) (\d{1,6})\s*\n")
LONGEST_LINE = 4 << 20  # bytes
MOST_WIDE = 1 << 16  # numbers of a vector
LONGEST_GRAM = 100  # characters
LONGEST_WORD = 4096  # bytes; a binary file without a space within so many is none
WINDOW = 5  # words to each side that count as neighbours
RUN = 1 << 18  # tokens whose neighbours are counted together
Vectors = dict[str, np.ndarray]


def read_vectors(path: str, words: Iterable[str]) -> Vectors:
    """The vectors of those `words` that the file holds, float32. Raises ValueError where it is damaged."""
    kind, width = _kind(path)
    wanted = set(words)
    if kind == "fasttext":
        entries: Iterable[tuple[str, np.ndarray]] = _FastText(path, wanted).vectors().items()
    else:
        entries = (_binary if kind == "binary" else _text)(path, width, wanted)
    found = _collected(path, entries, width)
    if not found:
        raise ValueError(
            f"words.vectors: {path} holds none of the {len(wanted)} words of the task; is it of another "
            "language, or cased (then --student.words.lower_case false)?"
        )
    return found


def _collected(path: str, entries: Iterable[tuple[str, np.ndarray]], width: int) -> Vectors:
    """The first vector of each word. Raises ValueError where one is damaged."""
    found: Vectors = {}
    for word, vector in entries:
        if len(vector) != width or not np.isfinite(vector).all():
            raise ValueError(f'words.vectors: {path}: the vector of "{word}" is damaged')
        found.setdefault(word, vector)
    return found


def first_vectors(path: str, count: int = 100_000) -> Vectors:
    """The vectors of a file's first words, the most frequent ones, float32."""
    kind, width = _kind(path)
    if kind == "fasttext":
        model = _FastText(path, None)
        model.wanted = dict.fromkeys(islice(model.rows, count))
        return _collected(path, model.vectors().items(), width)
    entries = (_binary if kind == "binary" else _text)(path, width, None)
    return _collected(path, islice(entries, count), width)


def check_vectors(path: str) -> int:
    """Refuse a file that is no file of word vectors, by its beginning; returns the width."""
    return _kind(path)[1]


@contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
    if not Path(path).is_file():
        raise ValueError(f"words.vectors: {path} does not exist; give a file of word vectors, or null")
    with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
        try:
            yield cast(IO[bytes], file)
        except (EOFError, zlib.error, OSError) as error:
            raise ValueError(f"words.vectors: {path} is damaged ({error}); fetch it again") from None


def _kind(path: str) -> tuple[str, int]:
    """`text`, `binary` or `fasttext`, and the width."""
    with _open(path) as file:
        begin = file.read(1 << 16)
    if begin[:4] == struct.pack("<i", FASTTEXT_MAGIC):
        width = struct.unpack_from("<i", begin, 8)[0] if len(begin) >= 12 else 0
        if not 0 < width <= MOST_WIDE:
            raise ValueError(f"words.vectors: {path} is cut off or damaged")
        return "fasttext", width
    header = HEADER.match(begin)
    rest = begin[header.end() :] if header else begin
    line = rest.split(b"\n", 1)[0]
    parts = line.rstrip().split(b" ")
    width = int(header[2]) if header else len(parts) - 1
    try:
        numbers = [float(part) for part in parts[-width:]] if width > 0 else []
    except ValueError:
        numbers = []
    if 0 < len(numbers) == width < len(parts):
        return "text", width
    if header and 0 < width <= MOST_WIDE and b" " in rest[:LONGEST_WORD]:
        return "binary", width
    raise ValueError(
        f"words.vectors: {path} is no file of word vectors (GloVe, word2vec or fastText, text or binary)"
    )


def _text(path: str, width: int, wanted: set[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    with _open(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            if len(line) == LONGEST_LINE:
                raise ValueError(f"words.vectors: {path} line {number} is longer than vectors are")
            if number == 1 and HEADER.fullmatch(line):
                continue
            # From the right: a few words of GloVe 840B hold spaces.
            name, *values = line.rstrip().rsplit(b" ", width)
            if not name and not values:
                continue  # some files end with a blank line
            if len(values) != width:
                raise ValueError(
                    f"words.vectors: {path} line {number} has no {width} numbers; is it cut off?"
                )
            word = name.decode("utf-8", "replace")
            if wanted is None or word in wanted:
                try:
                    yield word, np.array(values, dtype=np.float32)
                except ValueError:
                    raise ValueError(f"words.vectors: {path} line {number} holds no numbers") from None


def _binary(path: str, width: int, wanted: set[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    with _open(path) as file:
        count = int(file.readline().split()[0])
        buffer, place = b"", 0
        for number in range(count):
            while (space := buffer.find(b" ", place)) < 0 or len(buffer) < space + 1 + 4 * width:
                more = file.read(1 << 20)
                if not more or space < 0 <= len(buffer) - place - LONGEST_WORD:
                    raise ValueError(
                        f"words.vectors: {path} ends at word {number} of {count}; is it cut off?"
                    )
                buffer, place = buffer[place:] + more, 0
            word = buffer[place:space].lstrip(b"\n").decode("utf-8", "replace")
            if wanted is None or word in wanted:
                yield word, np.frombuffer(buffer, "<f4", width, space + 1).copy()
            place = space + 1 + 4 * width


class _FastText:
    """A fastText model's vectors: a word's own row and those of its n-grams, averaged.

    Bojanowski et al. 2017. The rows stay in the file; only those needed are read.
    """

    def __init__(self, path: str, wanted: set[str] | None):
        """`wanted`: words that vectors are asked for; None for those of the model's dictionary."""
        try:
            self._read(path, wanted)
        except struct.error:
            raise ValueError(f"words.vectors: {path} is cut off or damaged") from None

    def _read(self, path: str, wanted: set[str] | None) -> None:
        with _open(path) as file:
            # Magic number, version, width, 7 others, buckets, least and most letters of n-grams, 2 others.
            head = struct.unpack("<2i12id", file.read(64))
            self.bucket, self.least, self.most = head[10:13]
            # Entries, words, labels, tokens, pruned n-grams.
            size, self.count, _, _, pruned = struct.unpack("<iiiqq", file.read(28))
            if pruned > 0 or not 11 <= head[1] <= 12:
                raise ValueError(f"words.vectors: {path} is a quantised fastText model; give its .vec file")
            grams = self.bucket if self.most > 0 else 0  # rows of n-grams
            if not (0 < self.count <= size and self.most <= LONGEST_GRAM and (grams > 0 or self.most <= 0)):
                raise struct.error
            entries = enumerate(_entries(file, size))
            self.rows = {
                word: row
                for row, word in entries
                if row < self.count and (wanted is None or word in wanted)
            }
            self.wanted = dict.fromkeys(self.rows if wanted is None else wanted)
            if file.read(1) != b"\0":
                raise ValueError(f"words.vectors: {path} is a quantised fastText model; give its .vec file")
            rows, width = struct.unpack("<qq", file.read(16))
            begin = file.tell()
        if width != head[2] or rows < self.count + grams:
            raise struct.error
        if Path(path).stat().st_size < begin + 4 * rows * width:
            raise struct.error
        self.matrix = np.memmap(path, "<f4", "r", begin, (rows, width))

    def vectors(self) -> Vectors:
        """Vectors of all the words wanted: of those unknown too, where they have n-grams."""
        found = {}
        for word in self.wanted:
            places = [self.rows[word]] if word in self.rows else []
            if self.most > 0 and word not in SPECIAL:
                places += [self.count + fasttext_hash(gram) % self.bucket for gram in self._grams(word)]
            if places:
                found[word] = np.asarray(self.matrix[places]).mean(axis=0)
        return found

    def _grams(self, word: str) -> Iterator[bytes]:
        marked = f"<{word}>"
        for begin in range(len(marked)):
            for length in range(self.least, self.most + 1):
                gram = marked[begin : begin + length]
                if len(gram) == length and not (length == 1 and gram in "<>"):
                    yield gram.encode()


def _entries(file: IO[bytes], size: int) -> Iterator[str]:
    """The words of a fastText model's dictionary; each has a zero byte, a count and a kind after it."""
    for _ in range(size):
        name = bytearray()
        while (byte := file.read(1)) != b"\0":
            name += byte
            if not byte or len(name) > LONGEST_WORD:
                raise struct.error
        file.read(9)
        yield name.decode("utf-8", "replace")


def fasttext_hash(gram: bytes) -> int:
    """FNV-1a as fastText computes it: bytes are signed."""
    value = 2166136261
    for byte in gram:
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value


# ---- vectors trained on a corpus


def train_vectors(tokenizer: Tokenizer, documents: Iterable[list[str]], size: int) -> Vectors:
    """Vectors from documents of sentences: the largest singular vectors of their PPMI (Levy et al. 2015).

    Positive pointwise mutual information of words within WINDOW places of one sentence, contexts
    smoothed by the power 0.75, factorised; rows are U sqrt(S). The same corpus gives the same vectors.
    """
    from sklearn.utils.extmath import randomized_svd  # here: it takes a second, in every process of any job

    words = known_words(tokenizer)
    counts = csr_matrix((len(words), len(words)), dtype=np.float64)
    for ids in _id_runs(tokenizer, documents):
        counts = counts + _pairs(ids, len(words))
    if not counts.nnz:
        raise ValueError("words.corpus: none of the task's words stand in it; is it of another language?")
    matrix = _ppmi(counts + counts.T)
    if not matrix.nnz:  # one word beside itself, say
        raise ValueError("words.corpus: no word stands beside another more often than by chance; give more")
    left, strength, _ = randomized_svd(matrix, min(size, len(words) - 1), random_state=0)
    vectors = (left * np.sqrt(strength)).astype(np.float32)
    present = np.flatnonzero(np.diff(matrix.indptr))
    return {words[i]: vectors[i] for i in present if words[i] not in SPECIAL}


def _id_runs(tokenizer: Tokenizer, documents: Iterable[list[str]]) -> Iterator[np.ndarray]:
    """The documents as runs of ids, a -1 after every sentence."""
    run: list[int] = []
    for document in documents:
        for encoding in tokenizer.encode_batch(document):
            run += [*encoding.ids, -1]
        if len(run) >= RUN:
            yield np.array(run)
            run = []
    if run:
        yield np.array(run)


def _pairs(ids: np.ndarray, size: int) -> csr_matrix:
    """How often two words stand within the window, each pair of places counted once."""
    sentence = np.cumsum(ids == -1)
    unknown = SPECIAL.index("[UNK]")
    firsts, seconds = [], []
    for distance in range(1, WINDOW + 1):
        a, b = ids[:-distance], ids[distance:]
        good = (sentence[:-distance] == sentence[distance:]) & (a > unknown) & (b > unknown)
        firsts.append(a[good])
        seconds.append(b[good])
    rows, columns = np.concatenate(firsts), np.concatenate(seconds)
    return coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(size, size)).tocsr()


def _ppmi(counts: csr_matrix) -> csr_matrix:
    """max(0, log P(context | word) / P(context)) of symmetric counts, words in rows."""
    row = np.asarray(counts.sum(axis=1)).ravel()
    context = row**0.75
    share = context / context.sum()
    with np.errstate(divide="ignore"):
        scaled = diags(np.where(row > 0, 1 / row, 0)) @ counts @ diags(np.where(share > 0, 1 / share, 0))
    matrix = csr_matrix(scaled)
    matrix.data = np.maximum(np.log(matrix.data), 0)
    matrix.eliminate_zeros()
    return matrix
