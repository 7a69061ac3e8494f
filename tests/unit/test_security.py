"""What no file here does: unpickle, run text, call a shell, trust a model's code (docs/security.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("data_pipeline", "distill", "tune", "launcher", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNNING = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
# A call, a keyword, and the values it may have; None where it may be left out.
ARGUMENTS = {
    "torch.load": ("weights_only", {True}),
    "numpy.load": ("allow_pickle", {False, None}),
    "np.load": ("allow_pickle", {False, None}),
}


def dangers(source: str) -> Iterator[str]:
    """What a file does that none may."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (f"imports {n.name}" for n in names if n.name.split(".")[0] in PICKLING)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in PICKLING:
                yield f"imports {module}"
            case ast.Call(func=function, keywords=keywords):
                name, given = ast.unparse(function), {k.arg: k.value for k in keywords}
                yield from _calls(name, given, len(node.args))


def _calls(name: str, given: dict[str | None, ast.expr], positional: int) -> Iterator[str]:
    if name in RUNNING | SHELLS:
        yield f"calls {name}"
    if name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
        yield f"calls {name}: yaml.safe_load"
    for keyword in ("shell", "trust_remote_code"):
        if keyword in given and not _is(given[keyword], False):
            yield f"calls {name} with {keyword}"
    if name in ARGUMENTS:
        keyword, allowed = ARGUMENTS[name]
        value = given.get(keyword)
        if not any(_is(value, each) for each in allowed):
            yield f"calls {name} without {keyword}={sorted(map(str, allowed))[0]}"


def _is(value: ast.expr | None, wanted: bool | None) -> bool:
    return value is None if wanted is None else isinstance(value, ast.Constant) and value.value is wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_does_what_none_may(path):
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "eval(text)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=config.trust)",
    ],
)
def test_the_check_sees(source):
    assert list(dangers(source))


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "np.load(path)", "subprocess.run(words, shell=False)"]
)
def test_the_check_lets_pass(source):
    assert not list(dangers(source))
