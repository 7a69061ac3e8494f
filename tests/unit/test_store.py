"""Shards behind URLs: the same rows as from a folder, through failures, with a bounded cache."""

import os
import shutil
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from data_pipeline import store
from data_pipeline.outage import Outage
from data_pipeline.packing import Row
from data_pipeline.settings import StoreConfig, StreamConfig
from data_pipeline.store import BlockCache, DamagedBlock, ShardFolder
from data_pipeline.stream import CorpusReader
from tests.helpers import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "shards"
    folder.mkdir()
    write_shards(folder, [[Row([10 * n + i, n], 2) for i in range(9)] for n in range(12)], size=500)
    return folder


def rows_of(folder: ShardFolder) -> list[list[int]]:
    return [ids.tolist() for n in range(len(folder.manifest.blocks)) for ids in folder.block(n).ids]


class Server:
    """A folder behind http on this machine, that answers byte ranges and can be told to fail."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.requests: list[str] = []
        self.failures = 0
        self.spoil = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait(30)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path} {request.headers.get('Range', '')}")
        if self.failures:
            self.failures -= 1
            raise web.HTTPServiceUnavailable
        path = self.folder / request.path.lstrip("/")
        if not path.is_file():
            raise web.HTTPNotFound
        wanted = request.http_range
        if self.spoil:
            self.spoil -= 1
            data = path.read_bytes()[wanted.start : wanted.stop]
            return web.Response(status=200 if wanted.start is None else 206, body=bytes(len(data)))
        return web.FileResponse(path)

    def _serve(self) -> None:
        import asyncio

        async def main() -> None:
            application = web.Application()
            application.router.add_get("/{path:.*}", self._answer)
            runner = web.AppRunner(application)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

        asyncio.run(main())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


@pytest.fixture
def server(shards, monkeypatch):
    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)
    running = Server(shards)
    yield running
    running.close()


def test_http_gives_the_same_rows(server, shards, tmp_path):
    config = StoreConfig(cache=str(tmp_path / "cache"))
    assert rows_of(ShardFolder(server.url, config)) == rows_of(ShardFolder(str(shards)))
    ranges = [request for request in server.requests if "bytes=" in request]
    assert len(ranges) == 12  # a block a request, never a whole shard


def test_whole_shards_behind_http_are_there_and_have_their_checksums(server):
    folder = ShardFolder(f"{server.url}/", StoreConfig(cache=None))
    folder.refuse_missing()  # nothing is looked for on this machine
    for shard, said in folder.manifest.checksums.items():
        assert folder.sha256(shard) == said


def test_what_is_cached_is_not_fetched_again(server, tmp_path):
    config = StoreConfig(cache=str(tmp_path / "cache"))
    first = rows_of(ShardFolder(server.url, config))
    server.requests.clear()
    assert rows_of(ShardFolder(server.url, config)) == first
    assert len(server.requests) == 1  # the manifest


def test_a_cached_block_that_is_damaged_is_fetched_again(server, tmp_path):
    config = StoreConfig(cache=str(tmp_path / "cache"))
    first = rows_of(ShardFolder(server.url, config))
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert rows_of(ShardFolder(server.url, config)) == first


def test_a_cached_block_that_can_not_be_read_is_fetched_again(server, tmp_path):
    config = StoreConfig(cache=str(tmp_path / "cache"))
    first = rows_of(ShardFolder(server.url, config))
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
        path.mkdir()
    assert rows_of(ShardFolder(server.url, config)) == first


def test_a_cache_below_the_users_home_is_made_there(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows_of(ShardFolder(server.url, StoreConfig(cache="~/not/there/yet")))
    assert len(list((tmp_path / "not" / "there" / "yet").iterdir())) == 12


def test_the_cache_keeps_within_what_the_settings_say(server, tmp_path):
    config = StoreConfig(cache=str(tmp_path / "cache"), cache_gb=1e-6)
    folder = ShardFolder(server.url, config)
    rows_of(folder)
    assert sum(block.size for block in folder.manifest.blocks) > 1000
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 1000


def test_without_a_cache_nothing_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows_of(ShardFolder(server.url, StoreConfig(cache=None)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["failures", "spoil"])
def test_failures_and_spoilt_transfers_are_tried_again(server, tmp_path, kind):
    config = StoreConfig(retries=3, cache=str(tmp_path / "cache"))
    expected = rows_of(ShardFolder(server.url, StoreConfig(cache=None)))
    setattr(server, kind, 2)
    folder = ShardFolder(server.url, config)  # whose manifest comes in the third attempt
    setattr(server, kind, 3)
    assert rows_of(folder) == expected


def test_too_many_failures_end_it_naming_the_shard(server):
    folder = ShardFolder(server.url, StoreConfig(retries=2, cache=None))
    server.spoil = 100
    with pytest.raises(ValueError, match=r"http://\S+/shard-000000\.tar is damaged at byte 512 \(checksum"):
        folder.block(0)


def test_an_outage_ends_it_naming_the_shard(server):
    folder = ShardFolder(server.url, StoreConfig(retries=1, cache=None))
    server.failures = 100
    with pytest.raises(Outage, match=r"http://\S+/shard-000000\.tar can't be read in 2 attempts"):
        folder.block(0)


def test_a_store_has_longer_and_longer_to_come_back(server, monkeypatch):
    waits: list[float] = []
    folder = ShardFolder(server.url, StoreConfig(retries=10, cache=None))
    monkeypatch.setattr(store.time, "sleep", waits.append)
    monkeypatch.setattr(store, "FIRST_WAIT", 0.5)
    server.failures = 10
    assert len(folder.block(0)) == 9
    assert all(now > 1.1 * before for before, now in pairwise(waits[:7]))
    assert len(waits) == 10
    assert 200 < sum(waits) < 400


@pytest.mark.parametrize("left", [0, 600, 1500])
def test_what_a_copy_that_was_cut_off_lost_is_damage_and_no_outage(shards, tmp_path, monkeypatch, left):
    """A server refuses a range beyond a file's end by an error of its own."""
    monkeypatch.setattr(store, "FIRST_WAIT", 0.01)
    shutil.copytree(shards, tmp_path / "copy")
    path = tmp_path / "copy" / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[:left])
    other = Server(tmp_path / "copy")
    try:
        folders = [
            ShardFolder(place, StoreConfig(retries=1, cache=None))
            for place in (other.url, str(path.parent))
        ]
        behind_url, local = map(damaged_blocks, folders)
        assert behind_url == local != []
    finally:
        other.close()


def damaged_blocks(folder: ShardFolder) -> list[int]:
    found = []
    for number in range(len(folder.manifest.blocks)):
        try:
            folder.block(number)
        except DamagedBlock:
            found.append(number)
    return found


def test_what_may_not_be_read_is_no_outage(server, monkeypatch):
    def deny(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    folder = ShardFolder(server.url, StoreConfig(retries=0, cache=None))
    monkeypatch.setattr(ShardFolder, "_remote", deny)
    with pytest.raises(ValueError, match=r"shard-000000\.tar may not be read; let this user") as found:
        folder.block(0)
    assert not isinstance(found.value, Outage)


def test_a_url_without_a_manifest_is_refused(server):
    with pytest.raises(ValueError, match=r"http://\S+/none has no manifest\.json"):
        ShardFolder(f"{server.url}/none", StoreConfig(cache=None))


def test_a_server_that_ignores_byte_ranges_is_refused(server, monkeypatch):
    async def whole(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=(self.folder / request.path.lstrip("/")).read_bytes())

    monkeypatch.setattr(Server, "_answer", whole)
    other = Server(server.folder)
    try:
        with pytest.raises(ValueError, match="answers byte ranges with whole files"):
            ShardFolder(other.url, StoreConfig(retries=0, cache=None)).block(0)
    finally:
        other.close()


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "nothing://there", "pipe://cat"])
def test_no_url_runs_a_command(url):
    with pytest.raises(ValueError, match=r"can't be opened|has no manifest"):
        ShardFolder(url)


def test_the_reader_serves_the_same_over_http(server, shards, tmp_path):
    stores = StreamConfig(workers=3, store=StoreConfig(cache=str(tmp_path / "cache")))
    remote = CorpusReader(server.url, 6, 0, config=stores)
    local = CorpusReader(str(shards), 6, 0)
    for step in range(2 * local.steps_per_epoch):
        assert np.array_equal(remote.step(step).ids, local.step(step).ids)
    remote.close()


@pytest.fixture(scope="module")
def s3(shards):
    """moto's server with the shards in a bucket."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    s3fs.S3FileSystem.clear_instance_cache()  # it keeps the address of an earlier server
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **keys)
    client.create_bucket(Bucket="corpora")
    for path in shards.iterdir():
        client.upload_file(str(path), "corpora", f"english/{path.name}")
    yield endpoint
    server.stop()


def test_s3_gives_the_same_rows(s3, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    config = StoreConfig(cache=str(tmp_path / "cache"))
    assert rows_of(ShardFolder("s3://corpora/english", config)) == rows_of(ShardFolder(str(shards)))
    with pytest.raises(ValueError, match=r"s3://corpora/none has no manifest"):
        ShardFolder("s3://corpora/none", config)


def test_a_file_url_is_a_folder_too(shards, tmp_path):
    config = StoreConfig(cache=str(tmp_path / "cache"))
    assert rows_of(ShardFolder(f"file://{shards}", config)) == rows_of(ShardFolder(str(shards)))


# --- the cache ---------------------------------------------------------------------------------


def test_the_cache_keeps_within_its_bound_and_drops_the_least_recently_used(tmp_path):
    cache = BlockCache(tmp_path, bound=10_000)
    for number in range(50):
        cache.put(f"key{number}", bytes([number]) * 1000)
        assert cache.get("key0") is not None or number > 9
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    assert cache.get("key49") == bytes([49]) * 1000
    assert cache.get("key0") == bytes(1000)  # asked for all along
    assert cache.get("key1") is None


def test_a_cache_with_room_is_looked_at_seldom(tmp_path, monkeypatch):
    """A look takes long of many files; what others write is found by the next."""
    monkeypatch.setattr(store, "PRUNE_EVERY", 100)
    cache = BlockCache(tmp_path, bound=80_000)
    (tmp_path / "others").write_bytes(bytes(100_000))
    os.utime(tmp_path / "others", (0, 0))
    cache.put("a", bytes(9_000))
    assert cache.get("others")
    os.utime(tmp_path / "others", (0, 0))
    cache.put("b", bytes(2_000))
    assert [cache.get(key) is None for key in ("others", "a", "b")] == [True, False, False]


def test_two_caches_share_a_folder(tmp_path):
    first, second = BlockCache(tmp_path, 5000), BlockCache(tmp_path, 5000)
    for number in range(20):
        (first if number % 2 else second).put(f"key{number}", bytes(1000))
    assert first.get("key19") == second.get("key19") == bytes(1000)
    BlockCache(tmp_path, 5000)
    assert len(list(tmp_path.iterdir())) <= 5


def test_a_cache_that_vanishes_is_made_again(tmp_path):
    cache = BlockCache(tmp_path / "cache", 5000)
    cache.put("a", b"1")
    shutil.rmtree(tmp_path / "cache")
    assert cache.get("a") is None
    cache.put("a", b"2")
    assert cache.get("a") == b"2"
