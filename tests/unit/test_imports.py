"""Imports run one way: data_pipeline <- distill <- tune, with launcher on top."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("data_pipeline", "distill", "launcher", "tune")
VAGUE_NAMES = {"utils", "common", "core"}


@dataclass(frozen=True)
class Rule:
    """Files that match `inside` (except those of `but`) import none of `never`."""

    inside: str
    never: tuple[str, ...]
    but: tuple[str, ...] = ()

    def covers(self, path: str) -> bool:
        return fnmatchcase(path, self.inside) and not any(fnmatchcase(path, b) for b in self.but)


RULES = (
    Rule("data_pipeline/*", never=("distill", "tune", "launcher")),
    Rule("distill/*", never=("tune", "launcher", "ray")),
    Rule("tune/*", never=("launcher",)),
    Rule("launcher/*", never=("torch",), but=("launcher/rank.py", "launcher/torchrun.py")),
    Rule("*/settings.py", never=("torch", "transformers", "deepspeed", "numpy", "tokenizers")),
    Rule("*", never=("ray",), but=("tune/*", "launcher/ray_driver.py")),
    Rule("*", never=("deepspeed",), but=("distill/engine.py", "distill/whole_state.py")),
    Rule("*", never=("apex",), but=("distill/fused.py",)),
)


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of every absolute import, those inside functions included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def broken_rules(path: str, source: str) -> list[str]:
    """Say which imports of a file (its path relative to the root) break a rule."""
    never = {name for rule in RULES if rule.covers(path) for name in rule.never}
    return [
        f"{path}:{line} imports {name}"
        for line, name in imported(ast.parse(source))
        if name.split(".")[0] in never
    ]


def imports_tune_from_ray(source: str) -> bool:
    """Whether `tune`, the name of a folder here, is bound to Ray's module."""
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "ray"
        and any(alias.name == "tune" for alias in node.names)
        for node in ast.walk(ast.parse(source))
    )


def python_files(*folders: str) -> list[str]:
    """Paths, relative to the root, of the Python files below these folders."""
    return [
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def test_packages_keep_the_rules():
    files = python_files(*PACKAGES)
    assert files
    assert not [broken for f in files for broken in broken_rules(f, (ROOT / f).read_text("utf-8"))]


def test_nobody_hides_the_folder_tune():
    files = python_files(*PACKAGES, "benchmarks", "tests")
    assert not [f for f in files if imports_tune_from_ray((ROOT / f).read_text("utf-8"))]


def test_no_vague_names():
    files = python_files(*PACKAGES, "benchmarks", "tests")
    assert not [f for f in files if VAGUE_NAMES & set(Path(f).with_suffix("").parts)]


def test_command_and_settings_load_nothing_heavy():
    """The rules see one file at a time; this sees what an import really pulls in."""
    settings = [f for f in python_files(*PACKAGES) if f.endswith("/settings.py")]
    modules = ["launcher.cli", *(f.removesuffix(".py").replace("/", ".") for f in settings)]
    program = (
        f"import sys, {', '.join(modules)}\n"
        "print(*{'torch', 'transformers', 'deepspeed', 'ray'} & set(sys.modules))"
    )
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert child.stdout.split() == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data_pipeline/shards.py", "from distill import engine"),
        ("data_pipeline/tasks/glue.py", "import launcher.cli"),
        ("distill/trainer.py", "import tune"),
        ("distill/trainer.py", "def f():\n    import ray"),
        ("distill/trainer.py", "import deepspeed"),
        ("distill/engine.py", "from apex.optimizers import FusedAdam"),
        ("distill/settings.py", "from torch.nn import Module"),
        ("data_pipeline/settings.py", "if True:\n    import transformers"),
        ("tune/search.py", "from launcher.cli import main"),
        ("launcher/slurm.py", "import ray"),
        ("launcher/cli.py", "def main():\n    import torch"),
        ("launcher/cli.py", "import importlib\nimportlib.import_module('torch')"),
    ],
)
def test_a_bad_import_is_found(path, source):
    assert len(broken_rules(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("distill/engine.py", "import deepspeed\nimport data_pipeline.batches"),
        ("distill/fused.py", "def pick():\n    from apex.optimizers import FusedAdam"),
        ("tune/search.py", "import ray.tune\nimport distill.general"),
        ("launcher/ray_driver.py", "import ray\nfrom tune import search"),
        ("launcher/rank.py", "import torch.distributed"),
        ("launcher/cli.py", "from . import ray"),
        ("launcher/cli.py", "import torchless"),
    ],
)
def test_a_good_import_passes(path, source):
    assert broken_rules(path, source) == []


def test_tune_from_ray_is_found():
    assert imports_tune_from_ray("def f():\n    from ray import init, tune as t")
    assert not imports_tune_from_ray("import ray.tune\nfrom ray.tune import Tuner")
