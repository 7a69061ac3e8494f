"""A run folder and its mirror in a bucket: real S3 over HTTP, served by moto on the loopback."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_pipeline import bucket as buckets
from data_pipeline.bucket import Bucket, below, check_bucket, is_bucket
from data_pipeline.model_folder import model_folder
from data_pipeline.whole import CHECKSUMS, checksum, write_whole
from distill import mirror as mirrors
from distill.mirror import Mirror
from tests.helpers import tree

STEP = "checkpoints/general/step-{:08d}"


@pytest.fixture
def url(bucket_server, request) -> str:
    """The URL of a run that is not there yet, with a name that wants quoting."""
    return below(bucket_server.url("runs"), f'{request.node.name} "#1" ?')


@pytest.fixture
def node(monkeypatch, tmp_path, url):
    """The run of the URL on a node of its own, by the node's name."""

    def on(name: str) -> Mirror:
        monkeypatch.setenv("HOME", str(tmp_path / name))
        mirror = Mirror(url)
        mirror.folder.mkdir(parents=True, exist_ok=True)
        return mirror

    return on


def save(mirror: Mirror, step: int, keep: int = 2) -> None:
    """Write a checkpoint as distill/checkpoints.py does, with lines of metrics up to it, and send all."""
    folder = mirror.folder / STEP.format(step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.safetensors").write_bytes(bytes([step]) * 1000)
    record = {"state.safetensors": checksum(folder / "state.safetensors")}
    (folder / CHECKSUMS).write_text(json.dumps(record))
    for old in sorted(folder.parent.glob("step-*"))[:-keep]:
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    (mirror.folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in range(step)))
    mirror.send(mirror.freeze())


def student(mirror: Mirror, word: str) -> None:
    """Write a student of two files that belong together."""
    folder = mirror.folder / "student"
    folder.mkdir(exist_ok=True)
    for name in ("model.safetensors", "projections.safetensors"):
        write_whole(folder / name, word)


def begun(mirror: Mirror) -> Mirror:
    """Begin the run as the driver does, and write it as rank 0 does."""
    mirror.bring_settings()
    for name in ("config.yaml", "command.txt"):
        (mirror.folder / name).write_text(name)
    mirror.send_settings()
    mirror.claim()
    return mirror


class Killed(BaseException):
    """What no code here catches, as a signal that ends the process."""


@contextmanager
def broken_off(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """The process dies when it has sent so many more objects."""
    put, left = buckets.Bucket.put, [after]

    def put_or_die(self, name, content):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return put(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(buckets.Bucket, "put", put_or_die)
        with pytest.raises(Killed):
            yield


def test_another_node_finds_the_run_as_it_was_sent(node):
    one = begun(node("one"))
    student(one, "best")
    save(one, 1)
    (one.folder / "student" / "nested").mkdir()
    (one.folder / "student" / "nested" / "ün named").write_text("x")
    save(one, 2)
    for own in ("lock", "plan.json", "damage.jsonl.partial"):
        (one.folder / own).write_text("this node's")
    one.send(one.freeze())
    two = node("two")
    two.bring()
    sent = {name: content for name, content in tree(one.folder).items() if content != b"this node's"}
    del sent[f"{STEP.format(1)}/state.safetensors"], sent[f"{STEP.format(1)}/{CHECKSUMS}"]
    assert tree(two.folder) == sent  # the newest checkpoint is enough


def test_what_a_node_has_and_the_bucket_has_not_goes(node):
    """Such as a checkpoint that was written and not sent: every rank goes on from the same one."""
    one = begun(node("one"))
    save(one, 1)
    later = one.folder / STEP.format(2)
    later.mkdir()
    (later / CHECKSUMS).write_text("{}")
    (one.folder / "student").mkdir()
    (one.folder / "stop").touch()
    one.bring()
    assert sorted(tree(one.folder)) == [
        f"{STEP.format(1)}/{CHECKSUMS}", f"{STEP.format(1)}/state.safetensors",
        "command.txt", "config.yaml", "metrics.jsonl",
    ]  # fmt: skip


def test_old_checkpoints_go_from_the_bucket_too(node):
    one = begun(node("one"))
    for step in (1, 2, 3):
        save(one, step)
    two = node("two")
    two.bring()  # the newest only
    two.claim()
    save(two, 4)
    steps = {name.rpartition("/")[0] for name in two.bucket.listed() if name.startswith("checkpoints/")}
    assert steps == {STEP.format(3), STEP.format(4)}


def test_what_others_put_there_stays_and_costs_no_checkpoint(node):
    one = begun(node("one"))
    save(one, 1)
    others = ("notes.txt", "checkpoints/notes.txt", "checkpoints/general/notes.txt", "pictures/a.jpg")
    for name in others:
        one.bucket.put(name, b"x")
    one.bring()
    save(one, 2)
    assert set(others) < one.bucket.listed().keys()
    assert f"{STEP.format(1)}/{CHECKSUMS}" in one.bucket.listed()
    assert (one.folder / STEP.format(1)).is_dir()


def test_what_is_there_is_neither_sent_nor_fetched_again(node, bucket_server):
    one = begun(node("one"))
    student(one, "best")
    save(one, 1)
    one.bring()
    bucket_server.requests.clear()
    one.bring()
    one.send(one.freeze())
    moved = [line for line in bucket_server.requests if "model.safetensors" in line or "state." in line]
    assert moved == []
    assert not [line for line in bucket_server.requests if line.startswith(("PUT", "POST"))]


@pytest.mark.parametrize("objects", range(9))
def test_a_node_that_dies_while_it_sends_leaves_a_run_to_go_on_from(node, monkeypatch, objects):
    """At whatever moment: the student is one student, and a later leg mends all."""
    one = begun(node("one"))
    student(one, "first")
    save(one, 1)
    student(one, "second")
    with broken_off(monkeypatch, objects):
        save(one, 2)
    two = node("two")
    two.bring()
    files = tree(two.folder)
    (step,) = {name.rpartition("/")[0] for name in files if name.startswith("checkpoints")}
    words = {files[f"student/{name}.safetensors"].decode() for name in ("model", "projections")}
    assert len(words) == 1
    assert step == STEP.format(1)
    assert len(files["metrics.jsonl"].split()) in (1, 2)
    two.claim()
    student(two, "second")
    save(two, 2)
    three = node("three")
    three.bring()
    assert tree(three.folder / "student") == tree(two.folder / "student")
    assert not [name for name in two.bucket.listed() if name.startswith("student.new")]


def test_dying_twice_while_a_student_is_replaced_loses_none(node, monkeypatch):
    one = begun(node("one"))
    student(one, "first")
    save(one, 1)
    for number, (word, objects) in enumerate([("second", 4), ("third", 1), ("fourth", 0)]):
        two = node(f"two {number}")
        two.bring()
        two.claim()
        student(two, word)
        with broken_off(monkeypatch, objects):
            two.send(two.freeze())
        after = node(f"after {number}")
        after.bring()
        words = set(tree(after.folder / "student").values())
        assert len(words) == 1, number


def test_a_checkpoint_with_other_bytes_is_passed_over(node, capsys):
    one = begun(node("one"))
    save(one, 1)
    save(one, 2)
    one.bucket.put(f"{STEP.format(2)}/state.safetensors", b"other")
    two = node("two")
    two.bring()
    assert not (two.folder / STEP.format(2)).exists()
    assert (two.folder / STEP.format(1)).is_dir()
    assert "state.safetensors is missing or not what was sent" in capsys.readouterr().err
    one.bucket.put(f"{STEP.format(1)}/{CHECKSUMS}", b'{"../../x": "0"}')
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged: checkpoints/general; remove"):
        node("three").bring()


def test_an_outage_is_no_damage(node, bucket_server):
    """A run that took it for damage would go on from an older checkpoint, or from none."""
    one = begun(node("one"))
    save(one, 1)
    bucket_server.refuse = "state.safetensors"
    try:
        with pytest.raises(ValueError, match=r"^s3://bucket/runs/\S+: .*ACCESS_DENIED"):
            node("two").bring()
    finally:
        bucket_server.refuse = ""


def test_who_comes_later_writes_and_who_wrote_before_is_refused(node):
    one = begun(node("one"))
    save(one, 1)
    two = node("two")
    two.claim()
    two.bring()
    with pytest.raises(
        ValueError, match=r"is being written by another run \(process \d+ of \S+\); this one"
    ):
        save(one, 2)
    save(two, 3)
    assert f"{STEP.format(3)}/{CHECKSUMS}" in two.bucket.listed()
    assert f"{STEP.format(2)}/{CHECKSUMS}" not in two.bucket.listed()


def test_a_run_that_nobody_claims_any_more_is_not_written(node):
    one = begun(node("one"))
    one.bucket.remove("lock")
    with pytest.raises(ValueError, match=r"is being written by another run \(nobody\); this one ends"):
        save(one, 1)
    assert not [name for name in one.bucket.listed() if name.startswith("checkpoints/")]


def test_what_ends_a_job_is_told_and_what_it_wrote_is_sent_before(node):
    one = begun(node("one"))
    (one.folder / "notes.txt").write_text("x")
    with pytest.raises(ZeroDivisionError), one.sending():
        raise ZeroDivisionError
    assert mirrors.mirroring() is None
    assert one.bucket.get("notes.txt") == b"x"
    with one.sending():
        (one.folder / "notes.txt").write_text("y")
    assert one.bucket.get("notes.txt") == b"y"


def test_nothing_of_an_earlier_run_is_left_where_the_bucket_was_emptied(node):
    one = begun(node("one"))
    save(one, 1)
    for name in one.bucket.listed():
        one.bucket.remove(name)
    one.bring_settings()
    assert tree(one.folder) == {}


def test_a_folder_of_something_else_is_refused(node):
    mirror = node("one")
    mirror.bucket.put("holiday.jpg", b"x")
    with pytest.raises(ValueError, match=r"is not empty and holds no run; give another"):
        mirror.bring_settings()


def test_a_wish_to_stop_reaches_the_rank(node, monkeypatch):
    monkeypatch.setattr(mirrors, "LOOKS", 0.01)
    mirror = begun(node("one"))
    with mirror.sending():
        assert mirrors.mirroring() is mirror
        assert not (mirror.folder / "stop").exists()
        mirror.bucket.put("stop", b"")
        while not (mirror.folder / "stop").exists():
            pass
    assert mirrors.mirroring() is None


def test_a_student_in_a_bucket_is_a_model_path(bucket_server, tiny_model, tmp_path, monkeypatch):
    """Fetched once and whole, and the same afterwards whatever becomes of the one in the bucket."""
    bucket, files = Bucket(bucket_server.url("runs/general")), tree(Path(tiny_model))
    bucket.put_folder("student", Path(tiny_model), files, lambda: None)

    def found(home: str) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path / home))
        model_folder.cache_clear()
        return Path(model_folder(below(bucket.url, "student")))

    assert tree(found("one")) == files
    bucket_server.requests.clear()
    bucket.put("student/config.json", b"{}")
    assert tree(found("one")) == files
    assert not [line for line in bucket_server.requests if line.startswith("GET") and "model.safe" in line]
    with pytest.raises(ValueError, match="the model folder is damaged; let its run end"):
        found("two")
    bucket.remove(f"student/{CHECKSUMS}")
    with pytest.raises(
        ValueError, match=r"no whole model folder \(no checksums.json there\); give student/"
    ):
        found("one")
    with pytest.raises(ValueError, match="credentials belong in the environment"):
        model_folder("s3://KEY:SECRET@bucket/student")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://KEY:SECRET@bucket/runs", "credentials belong in the environment"),
        ("s3://KEY@bucket/runs", "credentials belong in the environment"),
        ("abfs://box:SECRET@account.dfs.core.windows.net/runs", "credentials belong in the environment"),
        ("abfs://box@account.dfs.core.windows.net/runs?sig=SECRET", "with sig"),
        ("s3://box/runs?sig=", "with sig"),
        ("s3:///runs", "names no bucket; give s3://BUCKET/FOLDER"),
        ("s3://box/runs#two", "names no bucket; give s3://BUCKET/FOLDER"),
    ],
)
def test_a_url_that_would_be_a_secret_or_no_place_is_refused(url, message):
    with pytest.raises(ValueError, match=message) as refusal:
        check_bucket("--storage", url)
    assert "SECRET" not in str(refusal.value)
    assert "KEY" not in str(refusal.value)


def test_a_url_may_say_where_its_bucket_is():
    for option in sorted(buckets.OPTIONS):
        check_bucket("--storage", f"s3://box/runs?{option}=x")
    check_bucket("--storage", "abfs://box@account.dfs.core.windows.net/runs")


@pytest.mark.parametrize(
    ("path", "found"),
    [("s3://box", True), ("gs://box/a", True), ("abfss://box", True), ("s3:/box", False), ("s3", False)],
)
def test_a_place_in_a_bucket_is_told_by_its_beginning(path, found):
    assert is_bucket(path) is found
    assert not is_bucket(path.replace(path[:2], "http"))


@pytest.mark.parametrize("name", ["/etc/x", "..", "../x", "a/../../x", "a/./x", "a//x", ""])
def test_a_folder_that_names_files_elsewhere_is_damaged(name):
    """As a bucket's owner could, to write outside the run folder."""
    assert buckets._record(b'{"a": "0", "b/c": "1"}') == {"a": "0", "b/c": "1"}
    with pytest.raises(buckets.Damaged, match="names no files of the folder"):
        buckets._record(json.dumps({"a": "0", name: "1"}).encode())


@pytest.mark.parametrize("text", [b"{}", b"[]", b"5", b"{", b"\xff"])
def test_a_record_of_nothing_is_damaged(text):
    with pytest.raises(buckets.Damaged):
        buckets._record(text)


def test_a_folder_is_the_same_where_it_has_these_files_and_no_others(tmp_path):
    (tmp_path / "nested").mkdir()
    for name in ("a", "nested/b"):
        (tmp_path / name).write_text(name)
    record = {name: checksum(tmp_path / name) for name in ("a", "nested/b")}
    (tmp_path / CHECKSUMS).write_text("{}")
    assert buckets._is_same(tmp_path, record)
    assert not buckets._is_same(tmp_path, {"a": record["a"]})
    assert not buckets._is_same(tmp_path, record | {"c": "0"})
    assert not buckets._is_same(tmp_path, record | {"a": "0"})


def test_a_bucket_that_does_not_answer_is_one_line_without_secrets(bucket_server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEYKEYKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRETSECRET")
    elsewhere = Mirror(bucket_server.url("runs").replace("s3://bucket/", "s3://nowhere/"))
    with pytest.raises(ValueError, match=r"^s3://nowhere/runs\?\S+: .*NO_SUCH_BUCKET") as refusal:
        elsewhere.bucket.put("x", b"")
    assert len(str(refusal.value).splitlines()) == 1
    assert "KEYKEY" not in str(refusal.value)
    assert "SECRET" not in str(refusal.value)
