"""The model that `finetune` and `task` train: of a base's family and vocabulary, or of whole words."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from data_pipeline.corpus import read_documents
from data_pipeline.model_folder import model_folder
from data_pipeline.settings import TaskConfig, WordsConfig
from data_pipeline.tasks import read_examples
from data_pipeline.tokenising import leads_with_space
from data_pipeline.vocabulary import load_vocabulary
from data_pipeline.whole import to_disk
from data_pipeline.word_vectors import Vectors, read_vectors, train_vectors
from data_pipeline.words import SPECIAL, build_tokenizer, known_words, write_vocabulary
from distill.candidates import whole_entries
from distill.encoders import build_classifier, model_class, read_config, set_labels, student_shape
from distill.engine import barrier, rank
from distill.inherit import inherit
from distill.model_facts import model_config, of_words
from distill.settings import StudentConfig
from distill.word_students import WordModelConfig, WordModelForSequenceClassification

LENGTH = 5.0  # mean norm of word vectors that come from no file, as GloVe's have it


def build_student(
    config: StudentConfig, base: str | None, task: TaskConfig, labels: list[str], folder: Path
) -> tuple[PreTrainedModel, str]:
    """The model in fp32, and the folder of its tokenizer.

    Args:
        config: Kind and shape.
        base: The folder whose family, vocabulary and embeddings it may take (the teacher's). A student
            of words does without.
        task: The data; word-level students take their words from its training file.
        labels: The labels in output order; none for regression.
        folder: The run folder: a new vocabulary is written into it.
    """
    if config.cls:
        source = config.path or base
        assert source is not None
        return _of_own_class(config, source, labels, task.kind), source
    if config.path or config.kind == "transformer":
        source = base or config.path
        assert source is not None
        shape = student_shape(config, read_config(source))
        model = build_classifier(config.path, shape, labels, task.kind)
        if config.start == "teacher":
            inherit(model.base_model, source)
        return model, config.path or source
    vocabulary = folder / "vocabulary"
    return _of_words(config, base, task, labels, vocabulary), str(vocabulary)


def _of_words(
    config: StudentConfig, base: str | None, task: TaskConfig, labels: list[str], vocabulary: Path
) -> PreTrainedModel:
    """A student of words with a vocabulary of its own, written beside its vectors. Every rank calls."""
    vectors_file = vocabulary / "vectors.npy"
    if rank() == 0 and not vectors_file.is_file():
        with torch.random.fork_rng(devices=[]):  # a resumed run finds them made
            tokenizer, vectors = _words(config.words, base, task)
        write_vocabulary(tokenizer, vocabulary)
        partial = vectors_file.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, vectors)
        to_disk(partial)
        partial.replace(vectors_file)
    barrier()
    vectors = np.load(vectors_file)
    shape = WordModelConfig(
        kind=config.kind,
        vocab_size=len(vectors),
        embedding_size=vectors.shape[1],
        pair=task.text_pair is not None,
        frozen=config.words.frozen,
    )
    set_labels(shape, labels, task.kind)
    model = WordModelForSequenceClassification(shape)
    model.freeze()
    with torch.no_grad():
        model.embeddings.weight.copy_(torch.from_numpy(vectors))
    return model


def _of_own_class(config: StudentConfig, source: str, labels: list[str], kind: str) -> PreTrainedModel:
    """A model of the user's class, with `source`'s vocabulary.

    Raises ValueError where `student.arguments` names what its configuration does not take.
    """
    assert config.cls is not None
    cls = model_class("student.cls", config.cls)
    if config.path:
        return build_classifier(config.path, read_config(config.path), labels, kind)
    vocabulary = load_vocabulary(source)
    given = {"vocab_size": vocabulary.size, "pad_token_id": vocabulary.pad, **config.arguments}
    # For a class without an __init__ transformers writes one that does not name its parents' arguments.
    shapes = [each for each in cls.config_class.__mro__ if issubclass(each, PretrainedConfig)]
    known = {name for each in shapes for name in inspect.signature(each.__init__).parameters}
    if unknown := [name for name in config.arguments if name not in known]:
        raise ValueError(f"student.arguments: {cls.config_class.__name__} takes no {unknown[0]}")
    shape = cls.config_class(**given)
    set_labels(shape, labels, kind)
    return cls(shape).float()


def _words(config: WordsConfig, base: str | None, task: TaskConfig) -> tuple[Tokenizer, np.ndarray]:
    """The vocabulary, and the vector of every word in the order of the ids, float32 (words, width)."""
    examples = read_examples(task.train, task, labelled=False)
    texts = [*examples.firsts, *examples.seconds]
    if config.vectors:
        tokenizer = build_tokenizer(texts, config)
        vectors = read_vectors(config.vectors, known_words(tokenizer))
    elif base and not config.corpus.files:
        tokenizer = build_tokenizer(texts, config, whole_words(base, config.lower_case))
        vectors = _of_usual_length(teacher_vectors(base, known_words(tokenizer), config.size))
    else:
        tokenizer = build_tokenizer(texts, config)
        documents = read_documents(config.corpus) if config.corpus.files else iter([texts])
        vectors = _of_usual_length(train_vectors(tokenizer, documents, config.size))
    return tokenizer, table(known_words(tokenizer), vectors)


def table(words: list[str], vectors: Vectors) -> np.ndarray:
    """Vectors in the order of `words`: zero for padding, random ones as large for words without."""
    known = np.stack(list(vectors.values()))
    spread = float(known.std())
    result = np.random.default_rng(0).normal(0, spread, (len(words), known.shape[1])).astype(np.float32)
    for place, word in enumerate(words):
        if word in vectors:
            result[place] = vectors[word]
    result[0] = 0  # padding
    result[1] = known.mean(axis=0)  # a word that is not in the vocabulary
    return result


def _of_usual_length(vectors: Vectors) -> Vectors:
    """Scaled to a mean norm of LENGTH."""
    mean = float(np.mean([np.linalg.norm(vector) for vector in vectors.values()])) or LENGTH
    return {word: vector * (LENGTH / mean) for word, vector in vectors.items()}


def whole_words(base: str, lower_case: bool) -> list[str]:
    """Words that a model's vocabulary holds whole, in the order of its ids."""
    words = list(whole_entries(load_vocabulary(base)))
    return [word.lower() for word in words] if lower_case else words


@torch.no_grad()
def teacher_vectors(base: str, words: list[str], size: int) -> Vectors:
    """The mean of a model's embeddings of each word's pieces, reduced to their principal components."""
    kind = AutoModelForSequenceClassification if of_words(model_config(base, "base")) else AutoModel
    embeddings = kind.from_pretrained(model_folder(base)).get_input_embeddings().weight.float().numpy()
    vocabulary = load_vocabulary(base)
    lead = " " if leads_with_space(vocabulary.tokenizer) else ""
    asked = [word for word in words if word not in SPECIAL]
    encodings = vocabulary.tokenizer.encode_batch([lead + word for word in asked], add_special_tokens=False)
    matrix = np.stack([embeddings[e.ids or [vocabulary.unk]].mean(axis=0) for e in encodings])
    matrix -= matrix.mean(axis=0)
    if matrix.shape[1] > size:
        strength, axes = np.linalg.eigh(matrix.T @ matrix)
        matrix = matrix @ axes[:, np.argsort(strength)[::-1][:size]]
    return dict(zip(asked, matrix.astype(np.float32), strict=True))
