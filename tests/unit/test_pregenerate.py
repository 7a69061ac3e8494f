"""Pregeneration is a function of corpus, tokenizer and seed, and its shards are whole or absent."""

import gzip
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import pregenerate
from data_pipeline.corpus import read_documents
from data_pipeline.masking import mask
from data_pipeline.packing import Row, pack
from data_pipeline.pregenerate import check, run
from data_pipeline.settings import CorpusConfig, MaskingConfig, PackingConfig, PregenerateConfig
from data_pipeline.shards import write_shard
from data_pipeline.store import ShardFolder
from data_pipeline.tokenising import CONTINUES, SentenceTokenizer
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
        workers=1,
    )


def run_in(folder: Path, config: PregenerateConfig) -> dict[str, bytes]:
    """Run and return the bytes of every file."""
    run(config, folder)
    return tree(folder / "shards")


def rows_in(folder: Path) -> list[Row]:
    shards = ShardFolder(str(folder / "shards"))
    blocks = [shards.block(number) for number in range(len(shards.manifest.blocks))]
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
    rng = np.random.default_rng([config.seed, 0, 0, 0])
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


def test_block_sizes_change_no_row(tmp_path, config):
    run(config, tmp_path / "a")
    run(replace(config, rows_per_block=7), tmp_path / "b")
    assert rows_in(tmp_path / "a") == rows_in(tmp_path / "b")


def test_blocks_hold_as_many_rows_as_asked(tmp_path, config):
    run(config, tmp_path)
    blocks = ShardFolder(str(tmp_path / "shards")).manifest.blocks
    assert {block.rows for block in blocks[:-1]} == {5}
    assert 1 <= blocks[-1].rows <= 5


def shards_in(folder: Path) -> dict[str, bytes]:
    """Shards and manifest, without the records of what they were made from."""
    return {name: content for name, content in tree(folder / "shards").items() if "/" not in name}


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path, config, workers):
    config.shard_mb = 0.0005
    assert len(run_in(tmp_path / "alone", config)) > 10
    run(replace(config, workers=workers), tmp_path / "shared")
    assert shards_in(tmp_path / "shared") == shards_in(tmp_path / "alone")


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_slices_in_any_order_give_the_same_bytes(tmp_path, config, order):
    config.shard_mb = 0.0005
    run(config, tmp_path / "alone")
    shards = tmp_path / "shared" / "shards"
    for number in order:
        assert not (shards / "manifest.json").exists()
        part = replace(config, slice=f"{number}/3", shards=str(shards))
        summary = run(part, tmp_path / f"slice-{number}")
    assert "missing_pieces" not in summary
    assert shards_in(tmp_path / "shared") == shards_in(tmp_path / "alone")


def test_a_slice_says_how_many_pieces_are_missing(tmp_path, config):
    config.shard_mb = 0.0005
    summary = run(replace(config, slice="1/2"), tmp_path)
    assert summary["missing_pieces"] in (summary["pieces"], summary["pieces"] - 1)


def test_slices_of_other_settings_do_not_mix(tmp_path, config):
    run(replace(config, slice="1/2"), tmp_path)
    with pytest.raises(ValueError, match="was begun with other settings"):
        run(replace(config, slice="2/2", seed=5), tmp_path)


def test_slices_share_a_file_system_without_links(tmp_path, config, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(pregenerate.os, "link", refuse)
    run(replace(config, slice="1/2"), tmp_path)
    with pytest.raises(ValueError, match="was begun with other settings"):
        run(replace(config, slice="2/2", seed=5), tmp_path)


def test_a_corpus_that_changed_between_slices_is_refused(tmp_path, config):
    run(replace(config, slice="1/2"), tmp_path)
    with open(config.corpus.files[0], "a", encoding="utf-8") as file:
        file.write("one more .\n")
    with pytest.raises(ValueError, match="the corpus has changed since"):
        run(replace(config, slice="2/2"), tmp_path)


def test_variants_are_other_draws_of_the_same_text(tmp_path, config):
    config.packing = PackingConfig("full", 32, masking=MaskingConfig(0.15))
    run(config, tmp_path / "one")
    run(replace(config, variants=3), tmp_path / "three")
    shards = ShardFolder(str(tmp_path / "three" / "shards"))
    packed = [[], [], []]
    for number, block in enumerate(shards.manifest.blocks):
        rows = shards.block(number)
        packed[block.variant] += [ids[:n].tolist() for ids, n in zip(rows.ids, rows.lengths, strict=True)]
    assert packed[0] == [row.ids for row in rows_in(tmp_path / "one")]
    assert len({str(sorted(rows)) for rows in packed}) == 3
    assert len({str(sorted(map(len, rows))) for rows in packed}) == 1
    assert shards.manifest.rows == 3 * len(packed[0])


def test_files_of_a_corpus_are_one_stream(tmp_path, config):
    run(config, tmp_path / "whole")
    parts = []
    for number, document in enumerate(read_documents(config.corpus)):
        parts.append(tmp_path / f"{number:02d}.txt")
        parts[-1].write_text("\n".join(document), encoding="utf-8")
    config.corpus = CorpusConfig(files=list(map(str, parts)))
    run(config, tmp_path / "parts")
    assert shards_in(tmp_path / "parts") == shards_in(tmp_path / "whole")


def test_the_tokenizers_batches_change_nothing(tmp_path, config, monkeypatch):
    usual = run_in(tmp_path / "a", config)
    monkeypatch.setattr(pregenerate, "BATCH_CHARACTERS", 200)
    assert run_in(tmp_path / "b", config) == usual


def test_long_sentences_are_tokenised_few_at_once(tmp_path, config, monkeypatch):
    """What the tokenizer keeps of each is large; there are languages without a mark that cuts them here."""
    sizes, whole = [], SentenceTokenizer.__call__

    def noted(self: SentenceTokenizer, sentences: list[str]) -> list[list[int]]:
        sizes.append(sum(map(len, sentences)))
        return whole(self, sentences)

    monkeypatch.setattr(SentenceTokenizer, "__call__", noted)
    path = tmp_path / "long.txt"
    path.write_text("\n".join("the plot was dull " * 1000 for _ in range(100)), encoding="utf-8")
    run(replace(config, corpus=CorpusConfig([str(path)], documents="line")), tmp_path)
    assert sum(sizes) == 100 * 17_999
    assert max(sizes) < 300_000


def test_pieces_lose_no_token(tmp_path, config):
    config.shard_mb = 0.0005
    config.packing.method = "full"
    run(config, tmp_path)
    packed = sorted(token for row in rows_in(tmp_path) for token in row.ids[1:-1])
    assert packed == sorted(t for document in tokenised(config) for sentence in document for t in sentence)


def test_a_text_that_can_not_be_cut_is_shared_out_over_shards(tmp_path, config):
    """Memory stays bounded: a compressed file is one piece and several shards."""
    path = tmp_path / "corpus.txt.gz"
    path.write_bytes(gzip.compress(Path(config.corpus.files[0]).read_bytes()))
    config.corpus = CorpusConfig(files=[str(path)])
    config.packing.method, config.shard_mb = "full", 0.0005
    run(config, tmp_path)
    assert len(ShardFolder(str(tmp_path / "shards")).manifest.checksums) > 3
    packed = sorted(token for row in rows_in(tmp_path) for token in row.ids[1:-1])
    assert packed == sorted(t for document in tokenised(config) for sentence in document for t in sentence)


def test_pieces_draw_differently(tmp_path, config):
    """The same document twice, each time a piece of its own, becomes other rows."""
    document = "\n".join(documents(1, seed=2)[0])
    (tmp_path / "twice.txt").write_text(f"{document}\n\n{document}\n", encoding="utf-8")
    config.corpus = CorpusConfig(files=[str(tmp_path / "twice.txt")])
    config.packing = PackingConfig("full", 16, masking=MaskingConfig(0.15))
    config.shard_mb = len(document) / 1e6
    run(config, tmp_path)
    rows = rows_in(tmp_path)
    half = len(rows) // 2
    assert sorted(len(row.ids) for row in rows[:half]) == sorted(len(row.ids) for row in rows[half:])
    assert sorted(rows[:half]) != sorted(rows[half:])


def test_the_manifest_says_what_the_rows_were_made_from(tmp_path, config):
    config = replace(config, seed=3)
    run(config, tmp_path)
    manifest = ShardFolder(str(tmp_path / "shards")).manifest
    vocabulary = load_vocabulary(config.tokenizer)
    assert (manifest.vocabulary, manifest.vocabulary_size) == (vocabulary.fingerprint, vocabulary.size)
    assert (manifest.seed, manifest.documents, manifest.max_length) == (3, 12, 32)
    assert manifest.packing["method"] == "pairs"
    assert manifest.packing["masking"]["probability"] == 0


def test_the_summary_counts_what_was_written(tmp_path, config):
    summary = run(config, tmp_path)
    rows = rows_in(tmp_path)
    assert summary["sequences"] == len(rows)
    assert summary["tokens"] == sum(len(row.ids) for row in rows)
    assert summary["documents"] == len(documents(12, seed=1))
    assert summary["text_mb"] == round(Path(config.corpus.files[0]).stat().st_size / 1e6, 3)


# --- interruption ----------------------------------------------------------------------------


@pytest.fixture
def killed(monkeypatch):
    """Kill the writing within the third shard, once."""
    written = []

    def write_and_die(path, blocks, *rest):
        if len(written) == 2:
            monkeypatch.setattr(pregenerate, "write_shard", write_shard)
            path.with_name(path.name + ".partial").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        return write_shard(path, blocks, *rest)

    monkeypatch.setattr(pregenerate, "write_shard", write_and_die)
    return written


def test_a_killed_run_leaves_no_manifest(tmp_path, config, killed):
    config.shard_mb = 0.0005
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        ShardFolder(str(tmp_path / "shards"))


def test_a_run_after_a_killed_one_redoes_only_the_rest(tmp_path, config, killed):
    config.shard_mb = 0.0005
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in killed}
    run(config, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in killed} == times
    assert run_in(tmp_path / "run", config) == run_in(tmp_path / "other", config)


def test_only_what_killed_processes_left_is_removed_when_the_manifest_is_written(tmp_path, config):
    """Slices that end together each write the manifest."""
    shards = tmp_path / "shards"
    (shards / "pieces").mkdir(parents=True)
    left = [shards / "shard-00-000000-000.tar.1.partial", shards / "pieces" / "000000.json.1.partial"]
    neighbours = [shards / "manifest.json.1.partial", shards / "pieces" / "settings.json.1.partial"]
    for path in (*left, *neighbours):
        path.write_text("half")
    run(config, tmp_path)
    assert [path.exists() for path in (*left, *neighbours)] == [False, False, True, True]


def test_a_corpus_that_becomes_no_token_is_refused_and_leaves_no_shards(tmp_path, config):
    config.corpus = CorpusConfig(files=[str(tmp_path / "empty.txt")])
    (tmp_path / "empty.txt").write_text("\u200b\n\n\u200b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no row came out of it"):
        run(config, tmp_path)
    assert not (tmp_path / "shards" / "manifest.json").exists()


# --- checks ----------------------------------------------------------------------------------


def test_a_system_that_tells_no_affinity_gets_a_process_for_each_core(tmp_path, config, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert run(replace(config, workers=0), tmp_path)["sequences"]


def test_a_good_configuration_passes(config):
    check(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "/no/such/folder"}, "/no/such/folder: no such folder; give a model folder"),
        ({"rows_per_block": 0}, "rows_per_block: 0; give 1 to 4096"),
        ({"rows_per_block": 4097}, "rows_per_block: 4097; give 1 to 4096"),
        ({"shard_mb": 0.0}, "shard_mb: 0.0; give 0.0001 to 10000"),
        ({"shards": "s3://bucket/shards"}, "shards: s3://bucket/shards; give a folder, and copy it"),
        ({"variants": 0}, "variants must be 1 or more"),
        ({"slice": "3/2"}, "slice: 3/2; give K/N with K from 1 to N"),
        ({"slice": "half"}, "slice: half; give K/N"),
        ({"tokenizer": ""}, "tokenizer: none given"),
        ({"corpus": CorpusConfig()}, "corpus: no file given"),
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
    (block,) = write_shard(tmp_path / "shard.tar", [[Row([1], 1)] * 65_535], np.dtype(np.uint16))
    assert block.rows == 65_535


def test_a_unit_of_masking_changes_nothing_where_nothing_is_masked(tmp_path, config):
    run(config, tmp_path / "token")
    config.packing.masking = MaskingConfig(unit="word")
    run(config, tmp_path / "word")
    assert rows_in(tmp_path / "word") == rows_in(tmp_path / "token")


def test_whole_words_are_masked_whole(tmp_path, config):
    text = "abcab cabca bcabc acbab cbaca"
    (tmp_path / "words.txt").write_text("\n\n".join([text] * 9), encoding="utf-8")
    config.corpus = CorpusConfig(files=[str(tmp_path / "words.txt")])
    config.packing = PackingConfig("full", 32, masking=MaskingConfig(0.3, unit="word"))
    run(config, tmp_path)
    vocabulary = load_vocabulary(config.tokenizer)
    plain = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
    for row in rows_in(tmp_path):
        assert max(row.ids) < vocabulary.size
        # Five words of five letters; at 0.3 of 27 tokens one word is chosen, and its five tokens only.
        changed = [n // 5 for n, token in enumerate(row.ids[1:-1]) if token != plain[n]]
        assert len(set(changed)) <= 1
    assert any(vocabulary.mask in row.ids for row in rows_in(tmp_path))


def test_one_word_is_masked_at_least_where_asked(vocabulary_of_tests):
    ids = [vocabulary_of_tests.cls, 10, 11 + CONTINUES, 12, 13 + CONTINUES, vocabulary_of_tests.sep]
    config = MaskingConfig(0.0, at_least_one=True, unit="word")
    changed = [
        mask(ids, config, vocabulary_of_tests, np.random.default_rng(seed))[0].tolist()
        for seed in range(50)
    ]
    plain = [token & ~CONTINUES for token in ids]
    assert sum(row != plain for row in changed) > 40
    for row in changed:
        different = [place for place in range(6) if row[place] != plain[place]]
        assert set(different) <= {1, 2} or set(different) <= {3, 4}


@pytest.fixture
def vocabulary_of_tests(tiny_tokenizer):
    return load_vocabulary(tiny_tokenizer)
