"""Fixtures of every test: a tiny model, corpus, task and shards, made on the fly from seeds."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from data_pipeline import pregenerate
from data_pipeline.grammar import NEGATIVE, POSITIVE, THINGS, write_task
from data_pipeline.settings import CorpusConfig, PackingConfig, PregenerateConfig
from tests.helpers import KEYS, BucketServer, tiny_tokens, write_documents

ROOT = Path(__file__).parents[1]
REAL_DATA = Path(os.environ.get("DISTILLERY_DATA", ROOT.parent / "shared" / "data"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads; tests may share their cores
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: kernels run on the CPU
# Tests are the same every time, and never judged by the clock.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("same")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine can't run, and say why."""
    if item.get_closest_marker("real") and not REAL_DATA.is_dir():
        pytest.skip(f"no real data in {REAL_DATA}; set DISTILLERY_DATA")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; tests that take it carry the marker `real`."""
    return REAL_DATA


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that holds a BERT tokenizer of about 200 tokens, and nothing else."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {token: number for number, token in enumerate(tiny_tokens())}
    BertTokenizerFast(vocab=vocabulary, model_max_length=128).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: str) -> str:
    """A folder that holds a BERT of 4 layers, 32 wide, with random weights, and its tokenizer."""
    from transformers import BertConfig, BertModel

    from data_pipeline.vocabulary import copy_tokenizer

    folder = tmp_path_factory.mktemp("model")
    config = BertConfig(
        vocab_size=len(tiny_tokens()),
        num_hidden_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    copy_tokenizer(tiny_tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A txt of 60 short documents."""
    return str(write_documents(tmp_path_factory.mktemp("corpus") / "corpus.txt", 60, seed=0))


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of train.tsv (200 examples) and dev.tsv (64) with the columns sentence and label."""
    folder = tmp_path_factory.mktemp("task")
    write_task(folder, train=200, dev=64, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_search(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: str) -> dict[str, Any]:
    """A search over CNNs that learn from labels which words are kind; dev is measured every 4th step."""
    from transformers import BertConfig, BertForSequenceClassification

    from data_pipeline.vocabulary import copy_tokenizer

    task, rng = tmp_path_factory.mktemp("task"), random.Random(0)
    for split, count in (("train", 200), ("dev", 64)):
        lines = ["sentence\tlabel"]
        for number in range(count):
            words, label = ((POSITIVE, "positive"), (NEGATIVE, "negative"))[number % 2]
            lines.append(f"the {rng.choice(THINGS)} was {rng.choice(words)} .\t{label}")
        (task / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    teacher = tmp_path_factory.mktemp("teacher")
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(
        BertConfig(vocab_size=len(tiny_tokens()), initializer_range=0.5, **shape, **names)
    ).save_pretrained(teacher)
    copy_tokenizer(tiny_tokenizer, teacher)
    return {
        "base": {
            "teacher": {"path": str(teacher)},
            "task": {
                "train": str(task / "train.tsv"),
                "dev": str(task / "dev.tsv"),
                "max_length": 32,
            },
            "student": {"kind": "cnn", "words": {"size": 8}},
            "prediction": {
                "epochs": 2,
                "batch_size": 8,
                "objective": {"logits": 0, "labels": 1.0},
                "optimizer": {"lr": 1e-3},
                "evaluate_every": 4,
            },
            "record": {"save_every": 4, "log_every": 1},
        },
        "workers": {"concurrent": 1},
    }


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: str, tiny_tokenizer: str) -> str:
    """The shards/ folder made of the tiny corpus: rows of at most 32 tokens, several shards."""
    config = PregenerateConfig(
        corpus=CorpusConfig(files=[tiny_corpus]),
        tokenizer=tiny_tokenizer,
        packing=PackingConfig(max_length=32),
        rows_per_block=8,
        shard_mb=0.004,
        workers=1,
    )
    folder = tmp_path_factory.mktemp("pregenerate")
    pregenerate.run(config, folder)
    return str(folder / "shards")


@pytest.fixture
def bucket_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    """S3 on the loopback, with an empty bucket, and its keys in the environment."""
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()  # it keeps the address of an earlier server
    for name, key in KEYS.items():
        monkeypatch.setenv(name.upper(), key)
    server = BucketServer()
    yield server
    server.close()
