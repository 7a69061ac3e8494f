"""Shards give back what went in, to us and to WebDataset, and damage is seen and named."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.packing import Row
from data_pipeline.shards import (
    MANIFEST,
    VERSION,
    Block,
    Manifest,
    Rows,
    concatenate,
    decode_block,
    encode_block,
    file_sha256,
    parse_block,
)
from data_pipeline.store import ShardFolder
from data_pipeline.verify import verify
from tests.helpers import change_manifest, write_shards

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


def every_block(folder) -> list[Rows]:
    shards = ShardFolder(str(folder))
    return [shards.block(number) for number in range(len(shards.manifest.blocks))]


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
    assert [as_rows(block) for block in every_block(tmp_path)] == blocks
    assert len(list(tmp_path.glob("*.tar"))) == -(-count // 2)


@pytest.mark.parametrize(
    ("size", "kind"), [(201, np.uint16), (2**16, np.uint16), (2**16 + 1, np.uint32), (250_002, np.uint32)]
)
def test_ids_take_four_bytes_only_where_the_vocabulary_needs_them(tmp_path, size, kind):
    block = [Row([size - 1, 0, size - 2], 3)]
    write_shards(tmp_path, [block], size)
    (decoded,) = every_block(tmp_path)
    assert decoded.ids.dtype == kind
    assert as_rows(decoded) == block


def test_the_manifest_comes_back_as_it_was_written(tmp_path):
    manifest = write_shards(tmp_path, [[Row([1, 2], 2)]] * 3, size=10)
    assert ShardFolder(str(tmp_path)).manifest == manifest


def test_the_manifest_counts_what_the_shards_hold(tiny_shards):
    manifest = ShardFolder(tiny_shards).manifest
    blocks = every_block(tiny_shards)
    assert [len(block) for block in blocks] == [block.rows for block in manifest.blocks]
    assert sum(map(len, blocks)) == manifest.rows
    assert sum(int(block.lengths.sum()) for block in blocks) == manifest.tokens


def test_checksums_are_those_of_the_files(tiny_shards):
    manifest = ShardFolder(tiny_shards).manifest
    names = {path.name for path in Path(tiny_shards).glob("*.tar")}
    assert manifest.checksums == {name: file_sha256(Path(tiny_shards) / name) for name in names}


def test_webdataset_reads_the_same_arrays(tiny_shards):
    import webdataset

    manifest = ShardFolder(tiny_shards).manifest
    files = sorted(map(str, Path(tiny_shards).glob("*.tar")))
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode())
    assert len({sample["__key__"] for sample in samples}) == len(manifest.blocks)
    for sample, ours in zip(samples, every_block(tiny_shards), strict=True):
        theirs = decode_block(sample["npy"], manifest.max_length, manifest.pad)
        assert as_rows(theirs) == as_rows(ours)


@given(st.data())
def test_one_flipped_bit_in_a_block_is_named_with_shard_and_offset(tiny_shards, data):
    folder = ShardFolder(tiny_shards)
    number = data.draw(st.integers(0, len(folder.manifest.blocks) - 1))
    block = folder.manifest.blocks[number]
    place = block.offset + data.draw(st.integers(0, block.size - 1))
    path = Path(tiny_shards) / block.shard
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    try:
        with pytest.raises(ValueError, match=rf"{block.shard} is damaged at byte {block.offset} .*run"):
            folder.block(number)
    finally:
        path.write_bytes(content)


def test_the_blocks_beside_a_damaged_one_can_be_read(shards):
    folder = ShardFolder(str(shards))
    manifest = folder.manifest
    path = shards / manifest.blocks[0].shard
    damaged = bytearray(path.read_bytes())
    damaged[manifest.blocks[0].offset] ^= 1
    path.write_bytes(damaged)
    assert len(folder.block(1)) == manifest.blocks[1].rows


def test_a_shard_that_is_cut_off_is_named(shards):
    folder = ShardFolder(str(shards))
    last = folder.manifest.blocks[-1]
    path = shards / last.shard
    path.write_bytes(path.read_bytes()[: last.offset + last.size - 1])
    with pytest.raises(ValueError, match=rf"{last.shard} is damaged at byte {last.offset}"):
        folder.block(len(folder.manifest.blocks) - 1)


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no manifest\.json; give the shards/ folder"):
        ShardFolder(str(tmp_path))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_manifest_that_is_cut_off_is_refused(shards, keep):
    path = shards / MANIFEST
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: int(len(text) * keep)], encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged; run pregenerate again"):
        ShardFolder(str(shards))


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"blocks": [1]}', "\x00\x01"])
def test_a_manifest_that_says_something_else_is_refused(shards, text):
    (shards / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged; run pregenerate again"):
        ShardFolder(str(shards))


def test_a_manifest_of_another_format_is_refused_as_such(shards):
    change_manifest(shards, version=VERSION + 1, something_new=True)
    with pytest.raises(ValueError, match=rf"format version {VERSION + 1} and this release reads {VERSION}"):
        ShardFolder(str(shards))


def test_a_manifest_of_the_first_format_is_refused_as_such(shards):
    (shards / MANIFEST).write_text(json.dumps({"version": 1, "blocks": []}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"format version 1 and this release reads {VERSION}"):
        ShardFolder(str(shards))


@pytest.mark.parametrize("version", ["2", 2.0, None, [2]])
def test_a_manifest_whose_version_is_no_whole_number_is_refused(shards, version):
    change_manifest(shards, version=version)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged; run pregenerate again"):
        ShardFolder(str(shards))


def test_a_missing_shard_is_named(shards):
    folder = ShardFolder(str(shards))
    (shards / folder.manifest.blocks[0].shard).unlink()
    for look in (folder.refuse_missing, lambda: folder.block(0)):
        with pytest.raises(ValueError, match=rf"{folder.manifest.blocks[0].shard} is missing; copy it"):
            look()


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/passwd", "inner/shard.tar"])
def test_a_manifest_can_not_name_a_file_outside_its_folder(shards, name):
    blocks = json.loads((shards / MANIFEST).read_text(encoding="utf-8"))["blocks"]
    blocks[0][0] = name
    change_manifest(shards, blocks=blocks)
    with pytest.raises(ValueError, match="names a file outside its folder"):
        ShardFolder(str(shards))


def test_pickled_objects_are_never_loaded(tmp_path):
    """A block with a fitting checksum that holds a pickle is refused, not run."""
    manifest = write_shards(tmp_path, [[Row([1, 2], 2)]], size=10)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    data = buffer.getvalue()
    block = Block("evil.tar", 0, len(data), xxhash.xxh3_64_intdigest(data), 1)
    with pytest.raises(ValueError, match="it is no block"):
        parse_block(data, block, manifest)


class Bomb:
    """What a pickle does when it is loaded."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    "changes",
    [
        {"pad": -1},
        {"pad": 1 << 20},
        {"seed": "0"},
        {"documents": 1.5},
        {"vocabulary": 7},
        {"vocabulary_size": 1 << 33},
        {"max_length": 0},
        {"max_length": 1 << 40},  # for which a reader would take all memory
        {"packing": []},
        {"variants": True},
        {"checksums": {"a.tar": 1}},
        {"rows": 1},
        {"blocks": 3},
    ],
)
def test_a_manifest_of_impossible_values_is_damaged_whatever_its_checksum(shards, changes):
    change_manifest(shards, **changes)
    with pytest.raises(ValueError, match="is damaged; run pregenerate again"):
        ShardFolder(str(shards))


@pytest.mark.parametrize(("place", "value"), [(0, 5), (1, -1), (2, None), (3, 1.0), (4, 0), (5, 9)])
def test_a_block_of_impossible_values_is_damaged_whatever_its_checksum(shards, place, value):
    """Shard, offset, size, checksum, rows and variant."""
    blocks = json.loads((shards / MANIFEST).read_text())["blocks"]
    rows = sum(block[4] for block in blocks)
    if place == 4:
        rows -= blocks[1][4]
    blocks[1][place] = value
    change_manifest(shards, blocks=blocks, rows=rows)
    with pytest.raises(ValueError, match="is damaged; run pregenerate again"):
        ShardFolder(str(shards))


# --- random damage ---------------------------------------------------------------------------


def contents(folder: Path) -> tuple[Manifest, list[list[Row]]]:
    """The manifest and every row, or the ValueError that names what is wrong."""
    shards = ShardFolder(str(folder))
    return shards.manifest, [as_rows(shards.block(n)) for n in range(len(shards.manifest.blocks))]


def test_no_damage_yields_a_wrong_token_silently(shards, capsys):
    """200 flips and cuts over shards and manifest: each is named, or nothing that is read changes."""
    rng = np.random.default_rng(0)
    whole = contents(shards)
    files = [shards / MANIFEST, *sorted(shards.glob("*.tar"))]
    named = 0
    for _ in range(200):
        path = files[rng.integers(len(files))]
        before = path.read_bytes()
        damaged = bytearray(before)
        if rng.random() < 0.25:
            del damaged[rng.integers(len(damaged)) :]
        else:
            damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            assert contents(shards) == whole  # in a tar's headers and padding: nothing that we read
        except ValueError as error:
            assert path.name in str(error)  # noqa: PT017
            named += 1
        if path.suffix == ".tar":
            assert verify(str(shards)) == 1
            assert path.name in capsys.readouterr().out
        path.write_bytes(before)
    assert named > 50
    assert verify(str(shards)) == 0
    assert "every checksum is right" in capsys.readouterr().out
