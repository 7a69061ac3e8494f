"""Candidates for the words of a text: from a masked language model, and from word vectors.

Jiao et al. 2020 (TinyBERT), algorithm 1. A text is read twice, once with the word masked and once as it is,
so that the model knows the word itself. Contexts of many texts go through the model together, each distinct
one once. A choice that rounding could turn is made again in float64, so no batch size, thread or process
changes it; in 8 bits a context's logits have the same bits in any batch.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from data_pipeline.augment import Word
from data_pipeline.chinese import segmenter
from data_pipeline.model_folder import model_folder
from data_pipeline.settings import AugmentConfig
from data_pipeline.tokenising import BEGINS, continuing_prefix, leads_with_space
from data_pipeline.vocabulary import Vocabulary, load_vocabulary
from data_pipeline.word_vectors import first_vectors
from distill.attention import install
from distill.encoders import Batch, model_inputs, whole_model
from distill.int8 import check_int8, quantise
from distill.model_facts import positions
from distill.products import speed_up_products
from distill.read_places import reading

NEAR = 2e-4  # logits closer than this may change places by rounding; in fp32 they err by some 1e-5
# Of a batch, if no batch size is set: for each thread of a CPU what its caches hold, and for a GPU.
TOKENS = {"cpu": 768, "cuda": 16384}
GROUP = 16  # such a batch holds a multiple of it, where so many texts fit
WORDS_AT_ONCE = 64  # words whose cosines with all others are held at a time
LONGEST_CHINESE_WORD = 4  # characters; candidates of more are too many to rank


class Context(NamedTuple):
    """A sequence with masked places: tokens, where the second reading begins, and the places."""

    ids: tuple[int, ...]
    boundary: int
    masked: tuple[int, ...]


class MaskedWords:
    """A masked language model's best tokens at masked places."""

    def __init__(self, config: AugmentConfig, device: torch.device):
        self.vocabulary = load_vocabulary(config.model)
        folder = model_folder(config.model)
        self.model = whole_model(AutoModelForMaskedLM, folder, "model", dtype=torch.float32)
        self.model.to(device).eval().requires_grad_(False)
        self.exact: PreTrainedModel | None = None
        if config.precision == "int8":  # products of integers are exact
            check_int8(device, "precision")
            quantise(self.model)
        else:
            self.exact = copy.deepcopy(self.model).double()
            install(self.model)
            speed_up_products(self.model)
        vocabulary, added = self.vocabulary, self.vocabulary.tokenizer.get_added_tokens_decoder()
        self.special = {vocabulary.cls, vocabulary.sep, vocabulary.pad, vocabulary.mask, vocabulary.unk}
        self.special |= {number for number, token in added.items() if token.special}
        self.lead = " " if leads_with_space(vocabulary.tokenizer) else ""
        self.longest = positions(self.model.config.to_dict())
        self.top, self.batch_size = config.candidates, config.batch_size

    def context(self, ids: Sequence[int], word: Word) -> Context | None:
        """A text with one word masked, followed by the text; None where the word lies too far behind.

        No more of a text is looked at than the model takes, however long it is.
        """
        vocabulary = self.vocabulary
        places = tuple(range(1 + word.first, 2 + word.last))
        if places[-1] >= self.longest:
            return None
        seen = ids[: self.longest]
        masked = [
            vocabulary.mask if word.first <= i <= word.last else token for i, token in enumerate(seen)
        ]
        between = [vocabulary.sep] * vocabulary.separators_between
        whole = [vocabulary.cls, *masked, *between, *seen, vocabulary.sep][: self.longest]
        return Context(tuple(whole), 1 + len(ids) + len(between), places)

    def best(self, contexts: Iterable[Context]) -> dict[Context, np.ndarray]:
        """The best tokens at each masked place, (places, top), in the order of their ids."""
        todo = sorted(dict.fromkeys(contexts), key=lambda context: len(context.ids))
        found = self._all(todo, self.model)
        if self.exact:
            near = [context for context in todo if not found[context][1]]
            found |= self._all(near, self.exact)
        return {context: tokens for context, (tokens, _) in found.items()}

    def words(self, tokens: np.ndarray, unit: str) -> list[str]:
        """What the best tokens, (places, top), come to as words of the unit."""
        if unit == "chinese_word":
            names = [[name_of(self.vocabulary, token) for token in place] for place in tokens]
            return chinese_words(names, self.top)
        entries = (whole_word(self.vocabulary, int(t)) for t in tokens[0] if int(t) not in self.special)
        return [entry for entry in entries if entry]

    def _all(
        self, contexts: list[Context], model: PreTrainedModel
    ) -> dict[Context, tuple[np.ndarray, bool]]:
        """What `_top` finds for each context."""
        found: dict[Context, tuple[np.ndarray, bool]] = {}
        for batch in self._batches(contexts):
            found.update(zip(batch, self._top(batch, model), strict=True))
        return found

    def _batches(self, contexts: list[Context]) -> Iterator[list[Context]]:
        """Contexts, the shortest first, in batches of so many, or of as many tokens as the device likes."""
        kind = self.model.device.type
        budget = TOKENS[kind] * (torch.get_num_threads() if kind == "cpu" else 1)
        batch: list[Context] = []
        for context in contexts:
            fitting = max(1, budget // len(context.ids))
            size = self.batch_size or (fitting // GROUP * GROUP or fitting)
            if len(batch) >= size:
                yield batch
                batch = []
            batch.append(context)
        if batch:
            yield batch

    @torch.no_grad()  # the tensors of inference mode have no version, which int8 asks for
    def _top(self, contexts: list[Context], model: PreTrainedModel) -> list[tuple[np.ndarray, bool]]:
        """For each context its best tokens, and whether the last of them is clearly ahead of the next."""
        batch, places = self._batch(contexts)
        with reading(model, places):
            logits = model(**model_inputs(model, batch)).logits[0]
        values, tokens = logits.topk(self.top + 1)
        clear = (values[:, -2] - values[:, -1] > NEAR).cpu().numpy()
        chosen = np.sort(tokens[:, :-1].cpu().numpy(), axis=1)
        ends = np.cumsum([len(context.masked) for context in contexts])
        parts = [slice(end - len(c.masked), end) for c, end in zip(contexts, ends, strict=True)]
        return [(chosen[part], bool(clear[part].all())) for part in parts]

    def _batch(self, contexts: list[Context]) -> tuple[Batch, Tensor]:
        width = max(len(context.ids) for context in contexts)
        # An even width, and texts by GROUP: few different numbers of rows (see products.BLOCK).
        width = min(width + width % 2, self.longest)
        ids = np.full((len(contexts), width), self.vocabulary.pad, dtype=np.int64)
        mask, segments = np.zeros_like(ids), np.zeros_like(ids)
        places = []
        for row, context in enumerate(contexts):
            length = len(context.ids)
            ids[row, :length], mask[row, :length] = context.ids, 1
            segments[row, context.boundary : length] = 1
            places += [row * width + place for place in context.masked]
        device = self.model.device
        batch = Batch(*(torch.from_numpy(array) for array in (ids, mask, segments))).to(device)
        return batch, torch.tensor(places, device=device)


def is_maskable(word: Word, unit: str) -> bool:
    """Whether the model suggests words for this one: if it is one token, or few Chinese characters."""
    tokens = word.last - word.first + 1
    if unit == "chinese_word":
        return tokens == word.end - word.begin <= LONGEST_CHINESE_WORD
    return tokens == 1


def name_of(vocabulary: Vocabulary, token: int) -> str:
    """A vocabulary's entry by its id."""
    return vocabulary.tokenizer.id_to_token(int(token)) or ""


def whole_word(vocabulary: Vocabulary, token: int) -> str:
    """A vocabulary's entry as a word of its own; nothing where it only goes on with one.

    A byte-level vocabulary's entry may be half a character.
    """
    entry, prefix = name_of(vocabulary, token), continuing_prefix(vocabulary)
    if prefix is not None:
        return "" if prefix and entry.startswith(prefix) else entry
    text = vocabulary.tokenizer.decode([token], skip_special_tokens=False).strip()
    return text if entry[:1] in BEGINS and "\ufffd" not in text else ""


class Neighbours:
    """The words nearest to a word, by the cosine of their vectors."""

    def __init__(self, config: AugmentConfig, model: MaskedWords):
        self.vocabulary, self.lead = model.vocabulary, model.lead
        self.table: np.ndarray | None = None
        if config.vectors:
            found = first_vectors(config.vectors)
            self.words, matrix = list(found), np.stack(list(found.values())).astype(np.float64)
        else:
            weights = model.model.get_input_embeddings().weight.detach().double().cpu().numpy()
            self.table = weights - weights.mean(axis=0)
            entries = whole_entries(model.vocabulary)
            self.words, matrix = list(entries), self.table[list(entries.values())]
        self.numbers = {word: number for number, word in enumerate(self.words)}
        self.matrix = _unit(matrix)
        self.top = min(config.candidates, len(self.words) - 1)

    def best(self, words: Iterable[str]) -> dict[str, list[str]]:
        """Neighbours of each word, sorted; none for a word without a vector."""
        asked = {word: vector for word in sorted(set(words)) if (vector := self._vector(word)) is not None}
        found: dict[str, list[str]] = {}
        names = list(asked)
        for part in (names[i : i + WORDS_AT_ONCE] for i in range(0, len(names), WORDS_AT_ONCE)):
            cosines = np.stack([asked[word] for word in part]) @ self.matrix.T
            for word, row in zip(part, cosines, strict=True):
                row[self.numbers.get(word, [])] = -np.inf  # not the word itself
                top = np.argpartition(-row, self.top)[: self.top]
                found[word] = sorted(self.words[number] for number in top)
        return found

    def _vector(self, word: str) -> np.ndarray | None:
        if word in self.numbers:
            return self.matrix[self.numbers[word]]
        if self.table is None:
            return None
        ids = self.vocabulary.tokenizer.encode(self.lead + word, add_special_tokens=False).ids
        return _unit(self.table[ids].mean(axis=0)) if ids else None


def _unit(vectors: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1)


def whole_entries(vocabulary: Vocabulary) -> dict[str, int]:
    """The words of letters that a vocabulary holds whole, with their ids."""
    numbers = sorted(vocabulary.tokenizer.get_vocab(with_added_tokens=False).values())
    words = {whole_word(vocabulary, number): number for number in numbers}
    return {word: number for word, number in words.items() if word.isalpha()}


def chinese_words(options: Sequence[Sequence[str]], most: int) -> list[str]:
    """Words that jieba knows, of one of the options at each place; the most frequent ones, sorted."""
    jieba = segmenter()
    jieba.initialize()
    words = ("".join(characters) for characters in product(*options))
    known = {word: count for word in words if (count := jieba.dt.FREQ.get(word))}
    return sorted(heapq.nlargest(most, known, key=lambda word: (known[word], word)))
