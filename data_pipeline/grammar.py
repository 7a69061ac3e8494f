"""A made-up sentiment task that needs word order: reviews of two things, with negation and contrast.

Where two clauses disagree, the one that carries the sentence decides: the second in "the plot was
dull , but the acting was superb", the first in "the plot was dull , although the acting was
superb". Swapping the clauses keeps the bag of words and flips the label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

THINGS = [
    "plot", "acting", "script", "music", "ending", "cast", "dialogue", "camera", "work", "lighting",
    "pace", "hotel", "room", "breakfast", "service", "staff", "garden", "view", "pool", "lobby", "dinner",
    "soup", "wine", "dessert", "menu", "waiter", "kitchen", "terrace", "phone", "screen", "battery",
    "keyboard", "manual", "software", "printer", "speaker", "lecture", "book", "chapter", "concert",
    "singer", "stage",
]  # fmt: skip
POSITIVE = [
    "good", "great", "superb", "lovely", "wonderful", "excellent", "brilliant", "charming", "delightful",
    "pleasant", "impressive", "fantastic", "beautiful", "clever", "elegant", "enjoyable", "friendly",
    "fresh", "generous", "graceful", "memorable", "moving", "outstanding", "perfect", "remarkable",
    "smooth", "splendid", "stunning", "terrific", "thrilling", "witty", "admirable", "adorable",
    "comfortable", "exciting", "fine", "funny", "helpful", "inspiring", "magnificent", "marvelous",
    "refreshing",
]  # fmt: skip
NEGATIVE = [
    "bad", "awful", "terrible", "horrible", "dull", "boring", "dreadful", "poor", "weak", "ugly",
    "clumsy", "tedious", "annoying", "bland", "broken", "careless", "cheap", "cold", "dirty",
    "disappointing", "disgusting", "forgettable", "frustrating", "harsh", "inferior", "lousy", "mediocre",
    "messy", "miserable", "nasty", "noisy", "painful", "pathetic", "rude", "shabby", "sloppy", "stale",
    "stupid", "tasteless", "unbearable", "unpleasant", "useless",
]  # fmt: skip
NEGATIONS = ("not", "never", "hardly", "anything but")
DEGREES = ("", "", "really", "very", "quite", "truly")
# Each connector, where it stands, and which clause carries the sentence.
FRAMES = (
    ("{a} , but {b}", 1),
    ("{a} , yet {b}", 1),
    ("although {a} , {b}", 1),
    ("while {a} , {b}", 1),
    ("{a} , although {b}", 0),
    ("{a} , while {b}", 0),
    ("{a} , even though {b}", 0),
    ("even though {a} , {b}", 1),
)
LABELS = ("negative", "positive")


def write_task(folder: Path, train: int, dev: int, seed: int) -> tuple[Path, Path]:
    """Write train.tsv and dev.tsv (columns sentence and label), no sentence in both."""
    rng = np.random.default_rng(seed)
    sentences: dict[str, str] = {}
    while len(sentences) < train + dev:
        sentence, label = make_sentence(rng)
        sentences.setdefault(sentence, label)
    rows = [f"{sentence}\t{label}\n" for sentence, label in sentences.items()]
    paths = folder / "train.tsv", folder / "dev.tsv"
    for path, part in zip(paths, (rows[:train], rows[train:]), strict=True):
        path.write_text("sentence\tlabel\n" + "".join(part), encoding="utf-8")
    return paths


def make_sentence(rng: np.random.Generator) -> tuple[str, str]:
    """One sentence and its label: a clause alone once in four, else two in contrast."""
    if rng.random() < 0.25:
        label = int(rng.integers(2))
        return _clause(THINGS[rng.integers(len(THINGS))], label, rng), LABELS[label]
    frame, carrier = FRAMES[rng.integers(len(FRAMES))]
    label = int(rng.integers(2))
    first, second = rng.choice(len(THINGS), 2, replace=False)
    clauses = [
        _clause(THINGS[thing], label if place == carrier else 1 - label, rng)
        for place, thing in enumerate((first, second))
    ]
    return frame.format(a=clauses[0], b=clauses[1]), LABELS[label]


def _clause(thing: str, polarity: int, rng: np.random.Generator) -> str:
    negated = rng.random() < 0.4
    words = POSITIVE if polarity != negated else NEGATIVE
    adjective = words[rng.integers(len(words))]
    before = NEGATIONS[rng.integers(len(NEGATIONS))] if negated else DEGREES[rng.integers(len(DEGREES))]
    return " ".join(f"the {thing} was {before} {adjective}".split())
