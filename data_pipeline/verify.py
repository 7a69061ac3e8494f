"""`distillery pregenerate --verify`: every byte of a shard folder checked, and what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipeline.progress import tracked
from data_pipeline.store import ShardFolder

BINS = 16
BAR = 40  # characters of the histogram's longest bar


def verify(path: str) -> int:
    """Check a shard folder and print a summary; returns the exit code, 1 where anything is damaged."""
    folder = ShardFolder(path)
    manifest = folder.manifest
    lengths: Counter[int] = Counter()
    faults = list(_shard_faults(folder))
    for number in tracked(range(len(manifest.blocks)), "blocks", "block"):
        try:
            rows = folder.block(number)
        except ValueError as error:
            faults.append(str(error))
            continue
        lengths.update(rows.lengths.tolist())
        if rows.ids.size and int(rows.ids.max()) >= manifest.vocabulary_size:
            block = manifest.blocks[number]
            at = f"{folder.folder}/{block.shard} at byte {block.offset}"
            faults.append(f"shards: {at} holds an id outside the vocabulary")
    console = Console()
    console.print(_summary(folder))
    if lengths:
        console.print(_histogram(lengths))
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults" if faults else "every checksum is right")
    return 1 if faults else 0


def _shard_faults(folder: ShardFolder) -> Iterator[str]:
    """Yield what is wrong with whole files: a damaged tar header harms no row, but other readers."""
    for shard, expected in tracked(list(folder.manifest.checksums.items()), "shards", "shard"):
        try:
            if folder.sha256(shard) != expected:
                yield f"shards: {folder.folder}/{shard}: the file's checksum differs"
        except FileNotFoundError:
            yield f"shards: {folder.folder}/{shard} is missing"
        except Exception as error:  # each protocol's library has errors of its own
            yield f"shards: {folder.folder}/{shard} can't be read: {error}"


def _summary(folder: ShardFolder) -> Table:
    manifest = folder.manifest
    size = sum(block.size for block in manifest.blocks)
    table = Table(title=folder.folder, title_justify="left", show_header=False)
    for name, value in (
        (
            "rows",
            f"{manifest.rows:,} in {len(manifest.blocks):,} blocks, {len(manifest.checksums):,} shards",
        ),
        ("variants", str(manifest.variants)),
        ("tokens", f"{manifest.tokens:,}, {manifest.tokens / max(1, manifest.rows):.1f} a row"),
        ("documents", f"{manifest.documents:,}"),
        ("bytes", f"{size:,}, {size / max(1, manifest.rows):.0f} a row"),
        ("vocabulary", f"{manifest.vocabulary} of {manifest.vocabulary_size:,} entries"),
        ("packing", ", ".join(f"{key}: {value}" for key, value in manifest.packing.items())),
        ("seed", str(manifest.seed)),
    ):
        table.add_row(name, value)
    return table


def _histogram(lengths: Counter[int]) -> Table:
    """Rows by length."""
    values = np.array(list(lengths), dtype=np.int64)
    counts, edges = np.histogram(
        values, min(BINS, int(values.max() - values.min()) + 1), weights=list(lengths.values())
    )
    table = Table(title="rows by length in tokens", title_justify="left", box=None)
    table.add_column("tokens", justify="right")
    table.add_column("rows", justify="right")
    table.add_column("")
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        last = int(values.max()) if high == edges[-1] else int(np.ceil(high)) - 1
        table.add_row(
            f"{int(np.ceil(low))}-{last}", f"{int(count):,}", "█" * round(BAR * count / counts.max())
        )
    return table
