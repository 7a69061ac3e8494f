"""What documentation and recipes say can be typed: it parses, its dry run ends well; links lead somewhere.

README, guides and docs/python.md are run too, on tiny models (tests/integration/test_guides.py and
test_own_student.py, tests/unit/test_api.py), and what is typed for Slurm and Ray on real ones
(tests/cluster). No test runs what asks for a cloud (`aws`, `ray up`, `kubectl`), the hub, another
project's checkout (--reference of benchmarks) or hours of training (results, originals).
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from launcher import reference
from launcher.cli import main
from launcher.jobs import JOBS
from launcher.settings import job_of, parse, parser

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/*.yaml"))
NAMES = {"JOB", "RECIPE.yaml"}  # stand for any
# Named by themselves: Slurm's options, and those of the originals. Benchmarks' are theirs.
OTHERS = {"--array", "--mem", "--container-image"}
OTHERS |= {
    "--lr_schedule",
    "--warmup_steps",
    "--epochs_per_cycle",
    "--no_cuda",
    "--no_augment",
    "--task_name",
}
OTHERS |= {
    option
    for file in ROOT.glob("benchmarks/*.py")
    for option in re.findall(r'"(--[a-z-]+)"', file.read_text(encoding="utf-8"))
}
COMMANDS = r"(\.venv/bin/)?distillery|make|sbatch|python -m benchmarks\.\w+|recipes/\w+\.yaml|--\w"
TYPED = rf"(.* \| |source <\()?({COMMANDS})"


def text_of(page: str) -> str:
    """A page or a recipe's comments, continued lines joined, and what it sets in a shell in its place."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page in RECIPES:
        text = re.sub(r"^#", " ", "\n".join(re.findall("^#.*", text, re.M)), flags=re.M)
    text = re.sub(r" +\\\n", " ", text)
    for name, value in re.findall(r"^ +(\w+)=\((.+)\)$", text, re.M):
        text = text.replace(f'"${{{name}[@]}}"', value)
    return text


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command in code, indented, fenced or inline; of settings alone too."""
    text = text_of(page)
    blocks = re.findall(r"^(?:    |> ?\$ ?|\$ )(.+)$", text, re.M)
    fenced = [
        line.strip() for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"```.*?```", "", text, flags=re.S))
    for line in [*blocks, *fenced, *inline]:
        if found := re.match(rf"{TYPED}[^ ]*( |$)", line.strip()):
            said = line.strip()[found.end(1) if found[1] else 0 :].removesuffix(")" if found[1] else "")
            words = shlex.split(re.sub(r"[{][a-z, ]+[}]", "", said), comments=True)
            yield [Path(words[0]).name if "distillery" in words[0] else words[0], *words[1:]]


def check(words: list[str]) -> None:
    """Raises where the command would be refused before it reads any data."""
    if words[0] == "make":
        targets = re.findall(
            r"^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M
        )
        assert set(words[1:]) <= {name for line in targets for name in line.split()}
    elif words[0] == "python":
        source = (ROOT / (words[2].replace(".", "/") + ".py")).read_text(encoding="utf-8")
        options = [word.strip("[]") for word in words[3:] if word.strip("[").startswith("--")]
        assert [option for option in options if f'"{option}"' not in source] == []
    elif words[0] == "sbatch":
        at = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
        assert (ROOT / words[at]).is_file()
        check(["distillery", *words[at + 1 :]])
    elif words[0].startswith("--"):
        _check_settings(words)
    elif words[0].startswith("recipes/"):
        check(["distillery", job_of(words[0]), "--config", *words])
    elif len(words) > 1 and words[1] not in NAMES and words[1:] != ["--help"]:
        if words[1].endswith(".yaml"):
            words = [words[0], job_of(words[1]), "--config", *words[1:]]
        assert words[1] in JOBS
        _check_job(words[1], words[2:])


def _check_job(job: str, options: list[str]) -> None:
    if not options or options == ["--help"]:
        return
    by_a_run = "--resume" in options or any(re.fullmatch(r"runs/.+\.yaml", word) for word in options)
    if "..." in options or by_a_run:  # a run folder has the settings
        assert _unknown(options, job) == []
    elif JOBS[job].folder and f"--{JOBS[job].instead.partition('=')[0]}" not in options:
        assert main([job, *options, "--dry-run"]) == 0
    else:
        parse(job, options)


def _check_settings(options: list[str]) -> None:
    """Settings without a command are those of one job at least, or another program's."""
    if options[0].partition("=")[0] in OTHERS:
        return
    assert [] in [_unknown(options, job) for job in JOBS]


@cache
def _known(job: str) -> set[str]:
    return {*parser(job)._option_string_actions, "--help", "--dry-run"}


def _unknown(options: list[str], job: str) -> list[str]:
    named = [word.partition("=")[0] for word in options if re.match("--[a-z]", word)]
    return [name for name in named if name not in _known(job)]


@pytest.mark.parametrize("page", [*PAGES, *RECIPES])
def test_every_command_can_be_typed(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        try:
            check(words)
        except Exception as error:
            raise AssertionError(f"{page}: {shlex.join(words)}: {error}") from error


def test_stored_logits_are_those_of_the_texts_as_the_student_reads_them(monkeypatch):
    """`task` refuses others: label and task of a page cut at one length."""
    monkeypatch.chdir(ROOT)
    seen = 0
    for page in PAGES:
        lengths = {}
        for words in commands(page):
            if words[1:2] == ["label"] and "--run" in words:
                config, launch = parse("label", words[2:])
                lengths[f"{launch.run}/outputs"] = config.task.max_length
            if words[1:2] == ["task"] and "--teacher.outputs" in words:
                config, _ = parse("task", words[2:])
                assert config.task.max_length == lengths[config.teacher.outputs], page
                seen += 1
    assert seen >= 2


WRONG = (
    "make tset",
    "distillery tsk",
    "distillery task --no 1",
    "distillery general ... --no 1",
    "distillery general --teacher.path x --shards y --on slrm",
    "recipes/sst2_task.yaml --prediction.epoch 3",
    "sbatch slurm/train.sbatch recipes/none.yaml",
    "--task.txt text",
    "python -m benchmarks.step --refrence DIR",
)


def test_commands_are_found_and_wrong_ones_too():
    found = [words for page in PAGES for words in commands(page)]
    assert {words[1] for words in found if words[0] == "distillery" and len(words) > 1} >= {
        "task",
        "export",
    }
    assert sum(words[0] == "distillery" for words in found) > 100
    assert {words[0] for words in found} >= {
        "sbatch",
        "python",
        "make",
        "--task.text",
        "recipes/sst2_task.yaml",
    }
    assert sum(len(list(commands(page))) for page in RECIPES) > 25
    for wrong in WRONG:
        with pytest.raises(Exception):  # noqa: B017, PT011  (of several kinds)
            check(shlex.split(wrong))


def test_the_reference_is_what_the_dataclasses_say():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert text == reference.page(), "run `make docs`, or `python -m launcher.reference docs/reference.md`"
    assert "| `batch_size` | `int` | `32` | Sequences of a step over all processes. |" in text
    assert "|  |\n" not in text  # every setting says what it is
    assert "A trained model to ONNX, fp32 and int8, with a model card." in text


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("material")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= {
        path.stem for path in (tmp_path / "site").glob("*.html")
    }


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), f"{page} links to {target}"
