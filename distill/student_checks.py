"""What is refused of a student: its shape, its class, its words, the teacher's weights it starts with.

As in distill/checks.py: nothing but files is read, without torch, and every refusal is one line.
"""

from __future__ import annotations

import sys

from data_pipeline.corpus import check_corpus
from data_pipeline.vocabulary import load_vocabulary
from data_pipeline.word_vectors import check_vectors
from distill.custom import check_name, name_of
from distill.model_facts import WORDS, check_weights, has_weights, is_custom, model_config, of_words
from distill.number_checks import check_dropout, check_least
from distill.settings import EngineConfig, StageConfig, StudentConfig

SHAPE = ("layers", "hidden_size", "heads", "intermediate_size")


def is_of_words(student: StudentConfig) -> bool:
    """Whether a student reads whole words."""
    if student.cls:
        return False
    if student.path:
        return of_words(model_config(student.path, "student.path"))
    return student.kind != "transformer"


def unread(student: StudentConfig) -> tuple[str, tuple[str, ...]]:
    """The setting that says what a student is, and those of a task distillation that then do nothing."""
    shape = tuple(f"student.{name}" for name in ("start", *SHAPE))
    own = ("student.dropout", "intermediate")
    if student.path:
        return "path", ("student.kind", "student.cls", "student.arguments", "student.words", *shape)
    if student.cls:
        return "cls", ("student.kind", "student.words", *shape, *own)
    return "kind", ("student.words",) if student.kind == "transformer" else (*shape, *own)


def warn_of_unread(student: StudentConfig) -> None:
    """Name the settings of a student that do nothing."""
    given, names = unread(student)
    own = [name.removeprefix("student.") for name in names if name.startswith("student.")]
    if idle := [name for name in own if getattr(student, name) != getattr(StudentConfig(), name)]:
        print(
            f"warning: student.{', student.'.join(idle)}: not used, for student.{given} is "
            f"{getattr(student, given)}",
            file=sys.stderr,
        )


def check_words(name: str, student: StudentConfig, stages: list[StageConfig], engine: EngineConfig) -> None:
    """Refuse settings of a student of words that can't work; warn of a transformer's learning rate."""
    if not is_of_words(student):
        return
    if engine.zero == 3:
        raise ValueError("engine.zero: 3 shares out layer by layer; give 0, 1 or 2 for a student of words")
    words = student.words
    if words.vectors and words.corpus.files:
        raise ValueError(f"{name}.words: give vectors or corpus, not both")
    check_least(words, ("size", "least", "most"), f"{name}.words.")
    if words.vectors and not student.path:
        check_vectors(words.vectors)
    if words.corpus.files and not student.path:
        check_corpus(words.corpus, 1)
    for stage in stages:
        if stage.optimizer.lr < 2e-4:
            print(
                f"warning: optimizer.lr is {stage.optimizer.lr:g}, which suits transformers; a student of "
                "words learns with about 1e-3",
                file=sys.stderr,
            )


def check_student(name: str, student: StudentConfig, teacher: str, by_layers: bool = True) -> dict:
    """Refuse an impossible shape, or another vocabulary where layers are compared; returns its config.

    `name` is the setting's: student, or shape.
    """
    if student.cls or student.arguments:
        return check_own_class(name, student, teacher)
    check_start(name, student, teacher)
    check_dropout(f"{name}.dropout", student.dropout)
    if student.path:
        shape = model_config(student.path, f"{name}.path")
        check_weights(f"{name}.path", student.path)
        if not by_layers:
            load_vocabulary(student.path)
        elif load_vocabulary(student.path).fingerprint != load_vocabulary(teacher).fingerprint:
            raise ValueError(
                f"{name}.path: {student.path} has another vocabulary than the teacher's, "
                f"{teacher}, and layers can't be compared; distil a student of this teacher first, or "
                "compare none (task: --intermediate.epochs 0)"
            )
        return shape
    load_vocabulary(teacher)
    if student.kind != "transformer":
        return {"model_type": WORDS}
    if of_words(model_config(teacher, "teacher")):
        raise ValueError(
            f"{name}: {teacher}, the teacher, is of whole words, and a new transformer takes family and "
            f"vocabulary from its teacher; give {name}.path, or another {name}.kind"
        )
    _check_shape(name, student)
    return {
        **model_config(teacher, "teacher"),
        "num_hidden_layers": student.layers,
        "hidden_size": student.hidden_size,
        "num_attention_heads": student.heads,
    }


def _check_shape(name: str, student: StudentConfig) -> None:
    check_least(student, SHAPE, f"{name}.")
    if student.hidden_size % student.heads:
        raise ValueError(
            f"{name}.heads: {student.heads} heads don't divide the width {student.hidden_size}; "
            f"change {name}.heads or {name}.hidden_size"
        )


def check_own_class(name: str, student: StudentConfig, teacher: str) -> dict:
    """Refuse a class of the user's own that can't be found, or settings beside it; returns its config."""
    if student.cls is None:
        raise ValueError(f"{name}.arguments: read only with a class given by {name}.cls; leave it out")
    check_name(f"{name}.cls", student.cls)
    load_vocabulary(student.path or teacher)
    for one in ("kind", "start"):
        if getattr(student, one) != getattr(StudentConfig(), one):
            raise ValueError(f"{name}.{one}: {name}.cls is given instead; leave it out")
    if not student.path:
        return {}
    if student.arguments:
        raise ValueError(f"{name}.arguments: {student.path} has its shape already; leave them out")
    model = model_config(student.path, f"{name}.path", [student.cls])
    check_weights(f"{name}.path", student.path)
    if not is_custom(model, [student.cls]):
        raise ValueError(
            f"{name}.path: {student.path} holds no {name_of(student.cls)}; leave {name}.cls out, or give "
            "another folder"
        )
    return model


def check_start(name: str, student: StudentConfig, teacher: str | None) -> None:
    """Refuse a student that can't take its first weights from its teacher."""
    if student.start == "random":
        return
    if student.path or student.kind != "transformer":
        given = f"path {student.path}" if student.path else f"kind {student.kind}"
        raise ValueError(
            f"{name}.start: {student.start} is for a new transformer, and this student has {given}; "
            "leave start out"
        )
    model = model_config(teacher or "", "teacher")
    if not has_weights(teacher or ""):
        raise ValueError(f"{name}.start: {teacher} holds no weights in safetensors; give random")
    for one in ("layers", "hidden_size", "intermediate_size"):
        key = "num_hidden_layers" if one == "layers" else one  # of config.json
        own, most = getattr(student, one), model.get(key, 0)
        if own > most:
            raise ValueError(
                f"{name}.{one}: {own} is more than the {most} of {teacher}, whose weights {name}.start "
                f"takes; give no more, or {name}.start random"
            )
