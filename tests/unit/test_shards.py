"""Shards give back what went in, to us and to WebDataset, and damage is seen and named."""

import io
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.packing import Row
from data_pipeline.shards import (
    MANIFEST,
    VERSION,
    Rows,
    concatenate,
    decode_block,
    encode_block,
    file_sha256,
    read_block,
    read_manifest,
)
from tests.helpers import write_shards

PAD, WIDTH = 0, 16  # as `write_shards` has them


@st.composite
def rows(draw, largest: int = 2**16 - 1):
    ids = draw(st.lists(st.integers(0, largest), min_size=1, max_size=WIDTH))
    return Row(ids, draw(st.integers(0, len(ids))))


def as_rows(decoded: Rows) -> list[Row]:
    return [
        Row(ids[:length].tolist(), int(boundary))
        for ids, length, boundary in zip(decoded.ids, decoded.lengths, decoded.boundaries, strict=True)
    ]


@pytest.fixture
def shards(tiny_shards, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_shards, tmp_path / "shards"))


@given(st.lists(rows(), min_size=1, max_size=9))
def test_a_block_gives_its_rows_back(block):
    assert as_rows(decode_block(encode_block(block, np.dtype(np.uint16)), WIDTH, PAD)) == block


@given(st.lists(rows(), min_size=1, max_size=9))
def test_rows_are_padded_with_the_pad_token_alone(block):
    decoded = decode_block(encode_block(block, np.dtype(np.uint16)), WIDTH, pad=7)
    assert decoded.ids.shape == (len(block), WIDTH)
    for ids, length in zip(decoded.ids, decoded.lengths, strict=True):
        assert (ids[length:] == 7).all()


@given(st.lists(rows(), min_size=1, max_size=9), st.data())
def test_taking_rows_keeps_the_asked_order(block, data):
    decoded = decode_block(encode_block(block, np.dtype(np.uint16)), WIDTH, PAD)
    index = data.draw(st.lists(st.integers(0, len(block) - 1), max_size=12))
    assert as_rows(decoded.take(np.array(index, dtype=int))) == [block[i] for i in index]


@given(st.lists(st.lists(rows(), min_size=1, max_size=4), min_size=1, max_size=4))
def test_concatenated_rows_follow_each_other(blocks):
    parts = [decode_block(encode_block(block, np.dtype(np.uint16)), WIDTH, PAD) for block in blocks]
    assert as_rows(concatenate(parts)) == [row for block in blocks for row in block]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_folder_gives_its_blocks_back_in_any_number_of_shards(tmp_path, count):
    blocks = [[Row([n, n + 1, n + 2], 2), Row([n], 1)] for n in range(count)]
    write_shards(tmp_path, blocks, size=100)
    manifest = read_manifest(tmp_path)
    assert [as_rows(read_block(tmp_path, b, manifest)) for b in manifest.blocks] == blocks
    assert len(list(tmp_path.glob("*.tar"))) == -(-count // 2)


@pytest.mark.parametrize(
    ("size", "kind"), [(201, np.uint16), (2**16, np.uint16), (2**16 + 1, np.uint32), (250_002, np.uint32)]
)
def test_ids_take_four_bytes_only_where_the_vocabulary_needs_them(tmp_path, size, kind):
    block = [Row([size - 1, 0, size - 2], 3)]
    manifest = write_shards(tmp_path, [block], size)
    decoded = read_block(tmp_path, manifest.blocks[0], manifest)
    assert decoded.ids.dtype == kind
    assert as_rows(decoded) == block


def test_the_manifest_comes_back_as_it_was_written(tmp_path):
    manifest = write_shards(tmp_path, [[Row([1, 2], 2)]] * 3, size=10)
    assert read_manifest(tmp_path) == manifest


def test_the_manifest_counts_what_the_shards_hold(tiny_shards):
    manifest = read_manifest(tiny_shards)
    blocks = [read_block(tiny_shards, block, manifest) for block in manifest.blocks]
    assert [len(block) for block in blocks] == [block.rows for block in manifest.blocks]
    assert sum(map(len, blocks)) == manifest.rows
    assert sum(int(block.lengths.sum()) for block in blocks) == manifest.tokens


def test_checksums_are_those_of_the_files(tiny_shards):
    manifest = read_manifest(tiny_shards)
    names = {path.name for path in Path(tiny_shards).glob("*.tar")}
    assert manifest.checksums == {name: file_sha256(Path(tiny_shards) / name) for name in names}


def test_webdataset_reads_the_same_arrays(tiny_shards):
    import webdataset

    manifest = read_manifest(tiny_shards)
    files = sorted(map(str, Path(tiny_shards).glob("*.tar")))
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode())
    assert [int(sample["__key__"]) for sample in samples] == list(range(len(manifest.blocks)))
    for sample, block in zip(samples, manifest.blocks, strict=True):
        theirs = decode_block(sample["npy"], manifest.max_length, manifest.pad)
        assert as_rows(theirs) == as_rows(read_block(tiny_shards, block, manifest))


@given(st.data())
def test_one_flipped_bit_in_a_block_is_named_with_shard_and_offset(tiny_shards, data):
    manifest = read_manifest(tiny_shards)
    block = data.draw(st.sampled_from(manifest.blocks))
    place = block.offset + data.draw(st.integers(0, block.size - 1))
    path = Path(tiny_shards) / block.shard
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    try:
        with pytest.raises(ValueError, match=rf"{block.shard} is damaged at byte {block.offset} .*run"):
            read_block(tiny_shards, block, manifest)
    finally:
        path.write_bytes(content)


def test_the_blocks_beside_a_damaged_one_can_be_read(shards):
    manifest = read_manifest(shards)
    path = shards / manifest.blocks[0].shard
    damaged = bytearray(path.read_bytes())
    damaged[manifest.blocks[0].offset] ^= 1
    path.write_bytes(damaged)
    assert len(read_block(shards, manifest.blocks[1], manifest)) == manifest.blocks[1].rows


def test_a_shard_that_is_cut_off_is_named(shards):
    manifest = read_manifest(shards)
    last = manifest.blocks[-1]
    path = shards / last.shard
    path.write_bytes(path.read_bytes()[: last.offset + last.size - 1])
    with pytest.raises(ValueError, match=rf"{last.shard} is damaged at byte {last.offset}"):
        read_block(shards, last, manifest)


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no manifest\.json; give the shards/ folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_manifest_that_is_cut_off_is_refused(shards, keep):
    path = shards / MANIFEST
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: int(len(text) * keep)], encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged; run pregenerate again"):
        read_manifest(shards)


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"blocks": [1]}', "\x00\x01"])
def test_a_manifest_that_says_something_else_is_refused(shards, text):
    (shards / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged; run pregenerate again"):
        read_manifest(shards)


def test_a_manifest_of_another_format_is_refused_as_such(shards):
    content = json.loads((shards / MANIFEST).read_text(encoding="utf-8"))
    content |= {"version": VERSION + 1, "something_new": True}
    (shards / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"format version {VERSION + 1} and this release reads {VERSION}"):
        read_manifest(shards)


def test_a_missing_shard_is_named(shards):
    (shards / "shard-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"shard-000001\.tar is missing; run pregenerate again"):
        read_manifest(shards)


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/passwd", "inner/shard.tar"])
def test_a_manifest_can_not_name_a_file_outside_its_folder(shards, name):
    content = json.loads((shards / MANIFEST).read_text(encoding="utf-8"))
    content["blocks"][0][0] = name
    (shards / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="is missing"):
        read_manifest(shards)


def test_pickled_objects_are_never_loaded(tmp_path):
    """A block with a fitting checksum that holds a pickle is refused, not run."""
    manifest = write_shards(tmp_path, [[Row([1, 2], 2)]], size=10)
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    data = buffer.getvalue()
    (tmp_path / "evil.tar").write_bytes(data)
    block = type(manifest.blocks[0])("evil.tar", 0, len(data), zlib.crc32(data), 1)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_block(tmp_path, block, manifest)
