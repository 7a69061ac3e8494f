"""Pregeneration is a function of corpus, tokenizer and seed, and its shards are whole or absent."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import pregenerate
from data_pipeline.corpus import CorpusConfig, read_documents
from data_pipeline.packing import MaskingConfig, PackingConfig, Row, pack
from data_pipeline.pregenerate import PregenerateConfig, check, run
from data_pipeline.shards import ShardWriter, read_block, read_manifest
from data_pipeline.vocabulary import load_vocabulary
from tests.helpers import documents, tree, write_documents


@pytest.fixture
def config(tmp_path, tiny_tokenizer) -> PregenerateConfig:
    """A corpus of a dozen documents."""
    corpus = write_documents(tmp_path / "corpus.txt", 12, seed=1)
    return PregenerateConfig(
        corpus=CorpusConfig(files=[str(corpus)]),
        tokenizer=tiny_tokenizer,
        packing=PackingConfig(max_length=32),
        rows_per_block=5,
        blocks_per_shard=3,
    )


def run_in(folder: Path, config: PregenerateConfig) -> dict[str, bytes]:
    """Run and return the bytes of every file."""
    run(config, folder)
    return tree(folder / "shards")


def rows_in(folder: Path) -> list[Row]:
    manifest = read_manifest(folder / "shards")
    blocks = [read_block(folder / "shards", block, manifest) for block in manifest.blocks]
    return [
        Row(ids[:length].tolist(), int(boundary))
        for block in blocks
        for ids, length, boundary in zip(block.ids, block.lengths, block.boundaries, strict=True)
    ]


def tokenised(config: PregenerateConfig) -> list[list[list[int]]]:
    """The corpus one sentence at a time."""
    tokenizer = load_vocabulary(config.tokenizer).tokenizer
    return [
        [tokenizer.encode(sentence, add_special_tokens=False).ids for sentence in document]
        for document in read_documents(config.corpus)
    ]


def test_rows_are_those_of_packing_in_a_shuffled_order(tmp_path, config):
    run(config, tmp_path)
    rng = np.random.default_rng([config.seed, 0])
    rows = list(pack(tokenised(config), config.packing, load_vocabulary(config.tokenizer), rng))
    assert rows_in(tmp_path) == [rows[i] for i in rng.permutation(len(rows))]


def test_the_same_seed_gives_the_same_bytes(tmp_path, config):
    assert run_in(tmp_path / "a", config) == run_in(tmp_path / "b", config)


def test_another_seed_gives_other_rows(tmp_path, config):
    run(config, tmp_path / "a")
    run(replace(config, seed=1), tmp_path / "b")
    assert rows_in(tmp_path / "a") != rows_in(tmp_path / "b")


def test_masking_is_the_same_for_the_same_seed(tmp_path, config):
    config.packing.masking = MaskingConfig(0.15)
    assert run_in(tmp_path / "a", config) == run_in(tmp_path / "b", config)
    mask = load_vocabulary(config.tokenizer).mask
    assert any(mask in row.ids for row in rows_in(tmp_path / "a"))


def test_block_and_shard_sizes_change_no_row(tmp_path, config):
    run(config, tmp_path / "a")
    run(replace(config, rows_per_block=7, blocks_per_shard=1), tmp_path / "b")
    assert rows_in(tmp_path / "a") == rows_in(tmp_path / "b")


def test_blocks_hold_as_many_rows_as_asked(tmp_path, config):
    run(config, tmp_path)
    manifest = read_manifest(tmp_path / "shards")
    assert {block.rows for block in manifest.blocks[:-1]} == {5}
    assert 1 <= manifest.blocks[-1].rows <= 5
    per_shard = [sum(b.shard == name for b in manifest.blocks) for name in manifest.checksums]
    assert set(per_shard[:-1]) == {3}


def test_files_of_a_corpus_are_one_stream(tmp_path, config):
    whole = run_in(tmp_path / "whole", config)
    parts = []
    for number, document in enumerate(read_documents(config.corpus)):
        parts.append(tmp_path / f"{number:02d}.txt")
        parts[-1].write_text("\n".join(document), encoding="utf-8")
    config.corpus = CorpusConfig(files=list(map(str, parts)))
    assert run_in(tmp_path / "parts", config) == whole


def test_the_tokenizers_batches_change_nothing(tmp_path, config, monkeypatch):
    usual = run_in(tmp_path / "a", config)
    monkeypatch.setattr(pregenerate, "BATCH_DOCUMENTS", 5)
    assert run_in(tmp_path / "b", config) == usual


def test_windows_lose_no_token(tmp_path, config, monkeypatch):
    monkeypatch.setattr(pregenerate, "WINDOW_TOKENS", 100)
    config.packing.method = "full"
    run(config, tmp_path)
    packed = sorted(token for row in rows_in(tmp_path) for token in row.ids[1:-1])
    assert packed == sorted(t for document in tokenised(config) for sentence in document for t in sentence)


def test_a_window_is_shuffled_by_itself(tmp_path, config, monkeypatch):
    """Memory stays bounded because rows stay near their place in the corpus."""
    monkeypatch.setattr(pregenerate, "WINDOW_TOKENS", 1)
    config.packing.method = "full"
    run(config, tmp_path)
    vocabulary, found = load_vocabulary(config.tokenizer), rows_in(tmp_path)
    for document in tokenised(config):
        rows = list(pack([document], config.packing, vocabulary, np.random.default_rng(0)))
        assert sorted(found[: len(rows)]) == sorted(rows)
        found = found[len(rows) :]
    assert not found


def test_windows_draw_differently(tmp_path, config, monkeypatch):
    """The same document twice, each time a window of its own, becomes other rows."""
    monkeypatch.setattr(pregenerate, "WINDOW_TOKENS", 1)
    document = "\n".join(documents(1, seed=2)[0])
    (tmp_path / "twice.txt").write_text(f"{document}\n\n{document}\n", encoding="utf-8")
    config.corpus = CorpusConfig(files=[str(tmp_path / "twice.txt")])
    config.packing = PackingConfig("full", 16, masking=MaskingConfig(0.15))
    run(config, tmp_path)
    rows = rows_in(tmp_path)
    half = len(rows) // 2
    assert sorted(len(row.ids) for row in rows[:half]) == sorted(len(row.ids) for row in rows[half:])
    assert sorted(rows[:half]) != sorted(rows[half:])


def test_the_manifest_says_what_the_rows_were_made_from(tmp_path, config):
    config = replace(config, seed=3)
    run(config, tmp_path)
    manifest = read_manifest(tmp_path / "shards")
    vocabulary = load_vocabulary(config.tokenizer)
    assert (manifest.vocabulary, manifest.vocabulary_size) == (vocabulary.fingerprint, vocabulary.size)
    assert (manifest.seed, manifest.documents, manifest.max_length) == (3, 12, 32)
    assert manifest.packing["method"] == "pairs"
    assert manifest.packing["masking"]["probability"] == 0


def test_the_summary_counts_what_was_written(tmp_path, config):
    summary = run(config, tmp_path)
    rows = rows_in(tmp_path)
    assert summary == {
        "sequences": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "documents": len(documents(12, seed=1)),
    }


# --- interruption ----------------------------------------------------------------------------


@pytest.fixture
def killed(monkeypatch):
    """Kill the writing after three blocks, once."""
    write = ShardWriter.write

    def write_and_die(self, rows):
        if len(self.blocks) == 3:
            monkeypatch.setattr(ShardWriter, "write", write)
            raise KeyboardInterrupt
        write(self, rows)

    monkeypatch.setattr(ShardWriter, "write", write_and_die)


@pytest.mark.usefixtures("killed")
def test_a_killed_run_leaves_no_shards(tmp_path, config):
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "shards").exists()
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        read_manifest(tmp_path / "run" / "shards.partial")


@pytest.mark.usefixtures("killed")
def test_a_run_after_a_killed_one_gives_the_same_bytes(tmp_path, config):
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    assert run_in(tmp_path / "run", config) == run_in(tmp_path / "other", config)
    assert not (tmp_path / "run" / "shards.partial").exists()


def test_a_corpus_that_becomes_no_token_is_refused_and_leaves_no_shards(tmp_path, config):
    config.corpus = CorpusConfig(files=[str(tmp_path / "empty.txt")])
    (tmp_path / "empty.txt").write_text("\u200b\n\n\u200b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no row came out of it"):
        run(config, tmp_path)
    assert not (tmp_path / "shards").exists()


# --- checks ----------------------------------------------------------------------------------


def test_a_good_configuration_passes(config):
    check(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "/no/such/folder"}, "/no/such/folder: no such folder; give a model folder"),
        ({"rows_per_block": 0}, "rows_per_block: 0; give 1 to 65535"),
        ({"rows_per_block": 65_536}, "rows_per_block: 65536; give 1 to 65535"),
        ({"blocks_per_shard": 0}, "blocks_per_shard: 0; give 1 or more"),
        ({"packing": PackingConfig(max_length=7)}, "packing.max_length: 7; give 8 to 65535"),
        ({"packing": PackingConfig(max_length=65_536)}, "packing.max_length: 65536; give 8 to 65535"),
        ({"packing": PackingConfig(short_probability=1.5)}, "packing.short_probability: 1.5 is no prob"),
        ({"packing": PackingConfig(masking=MaskingConfig(-0.1))}, "packing.masking.probability: -0.1 is"),
        ({"packing": PackingConfig(masking=MaskingConfig(most=-1))}, "packing.masking.most: -1"),
    ],
)
def test_what_can_not_work_is_refused(config, change, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check(replace(config, **change))
    assert message in str(error.value)


def test_pairs_need_two_documents_and_full_rows_one(config, tmp_path):
    (tmp_path / "one.txt").write_text("one\ntwo\n", encoding="utf-8")
    config.corpus = CorpusConfig(files=[str(tmp_path / "one.txt")])
    with pytest.raises(ValueError, match="holds 1 document"):
        check(config)
    config.packing.method = "full"
    check(config)


def test_a_block_of_the_most_rows_allowed_is_written(tmp_path):
    writer = ShardWriter(tmp_path, vocabulary_size=100, blocks_per_shard=1)
    writer.write([Row([1], 1)] * 65_535)
    writer.close()
    assert writer.blocks[0].rows == 65_535
