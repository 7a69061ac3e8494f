"""A teacher's stored outputs: which are taken, and which a killed job goes on from."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import Examples
from distill.outputs import MANIFEST, Split, _folder_fingerprint, examples_fingerprint
from distill.settings import TeacherConfig

LOGITS = np.arange(10, dtype=np.float32).reshape(5, 2)


@pytest.fixture
def teacher(tmp_path) -> Path:
    """A folder of weights in two formats, and of what does not decide about outputs."""
    (tmp_path / "teacher").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "notes.txt"):
        (tmp_path / "teacher" / name).write_text(name)
    return tmp_path / "teacher"


def split(teacher: Path, length: int = 128, texts: str = "abcde", **settings) -> Split:
    _folder_fingerprint.cache_clear()  # the folder may have changed
    examples = Examples([*texts], [], [])
    folder = teacher.parent / "outputs" / "train"
    return Split(
        folder, examples, TaskConfig("", "", max_length=length), TeacherConfig(str(teacher), **settings)
    )


def written(teacher: Path, precision: str = "fp32") -> Split:
    """Whole outputs, in two files."""
    found = split(teacher)
    found.begin([precision])
    found.write(0, LOGITS[:3].astype(np.float64))
    found.write(3, LOGITS[3:])
    found.finish()
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_written_is_read_in_order(teacher, monkeypatch, precision):
    glob = Path.glob  # names a folder's files in any order
    monkeypatch.setattr(Path, "glob", lambda *given: sorted(glob(*given), reverse=True))
    written(teacher, precision)
    found = split(teacher)
    assert found.is_whole()
    assert found.precision == precision
    np.testing.assert_array_equal(found.read(), LOGITS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"length": 64}, "was made with another text or max_length"),
        ({"texts": "abced"}, "was made with another text or max_length"),
        ({"ensemble": {"teacher": 1.0}}, "was made with another teacher"),
        ({"precision": "int8"}, 'was made in \\["fp32"\\], and teacher.precision is int8'),
    ],
)
def test_other_settings_want_other_outputs(teacher, monkeypatch, change, says):
    written(teacher)
    monkeypatch.chdir(teacher.parent)
    with pytest.raises(ValueError, match=says):
        split(teacher, **change).check()
    assert not split(teacher, **change).is_whole()
    split(teacher, precision="fp32").check()


@pytest.mark.parametrize(
    ("name", "decides"),
    [
        ("config.json", True),
        ("tokenizer.json", True),
        ("model.safetensors", True),
        ("pytorch_model.bin", True),
        ("notes.txt", False),
    ],
)
def test_files_that_decide_about_outputs_are_those_of_the_model(teacher, name, decides):
    written(teacher)
    (teacher / name).write_text("other")
    assert split(teacher).is_whole() is not decides


def test_both_texts_of_a_pair_in_their_order_decide_about_outputs():
    texts = [("a", "b"), ("a", "c"), ("c", "b"), ("b", "a")]
    marks = [examples_fingerprint(Examples([first], [second], []), 128) for first, second in texts]
    assert len(set(marks)) == 4
    assert marks[0] == examples_fingerprint(Examples(["a"], ["b"], [1]), 128)  # labels do not


def test_a_teachers_weight_decides_about_outputs(teacher):
    ensembles = [split(teacher, ensemble={f"{teacher}/": weight}) for weight in (1.0, 2.0)]
    assert len({found.identity["teacher"] for found in ensembles}) == 2


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": 3}', '{"files": {}}'])
def test_a_damaged_manifest_is_no_manifest(teacher, text):
    found = written(teacher)
    (found.folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"is damaged; run|was made with another format; run"):
        found.check()


@pytest.mark.parametrize("name", ["logits-00000009.safetensors", "../train/logits-00000003.safetensors"])
def test_a_manifest_that_names_a_file_elsewhere_or_nowhere_is_refused(teacher, name):
    found = written(teacher)
    manifest = json.loads((found.folder / MANIFEST).read_text())
    manifest["files"] = {**manifest["files"], name: manifest["files"]["logits-00000003.safetensors"]}
    (found.folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is missing or damaged"):
        found.check()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"logits": np.zeros((2, 3), np.float32)}, "differ in their number of outputs"),
        ({"logits": np.zeros((1, 2), np.float32)}, "holds 4 rows of 5"),
        ({"logits": np.zeros((3, 2), np.float32)}, "holds 6 rows of 5"),
        ({"logits": np.zeros((2, 2))}, "holds no table of float32 numbers"),
        ({"logits": np.zeros(2, np.float32)}, "holds no table of float32 numbers"),
        ({"other": np.zeros((2, 2), np.float32)}, "is damaged"),
        (b"oops", "is damaged"),
    ],
)
def test_a_table_of_other_numbers_is_refused(teacher, content, says):
    found = written(teacher)
    part = found.part(3)
    save_file(content, part) if isinstance(content, dict) else part.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        found.read()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("change", [{}, {"length": 64}, {"precisions": ["bf16"]}])
def test_only_what_a_killed_job_left_of_the_same_outputs_stays(teacher, change, whole):
    first = written(teacher)
    if not whole:
        (first.folder / MANIFEST).unlink()
    precisions = change.pop("precisions", ["fp32"])
    same = not change and precisions == ["fp32"]
    split(teacher, **change).begin(precisions)
    left = [path.name for path in first.folder.glob("*.safetensors")]
    assert len(left) == (2 if same and not whole else 0)
    assert not (first.folder / MANIFEST).exists()
