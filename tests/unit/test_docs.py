"""What the documentation says can be typed: commands parse, make's targets and linked files exist."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import reference
from launcher.jobs import JOBS
from launcher.settings import parse, parser

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
NAMES = {"JOB", "RECIPE.yaml"}  # stand for any


def text_of(page: str) -> str:
    """A page with continued lines joined, and what it sets in a shell put in its place."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for name, value in re.findall(r"^ +(\w+)=\((.+)\)$", text, re.M):
        text = text.replace(f'"${{{name}[@]}}"', value)
    return text


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command in code, indented, fenced or inline."""
    text = text_of(page)
    blocks = re.findall(r"^(?:    |> ?\$ ?|\$ )(.+)$", text, re.M)
    fenced = [
        line.strip() for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"```.*?```", "", text, flags=re.S))
    for line in [*blocks, *fenced, *inline]:
        if re.match(r"(\.venv/bin/)?(distillery|make|python -m benchmarks\.\w+)( |$)", line.strip()):
            words = shlex.split(line, comments=True)
            yield [Path(words[0]).name, *words[1:]]


def check(words: list[str]) -> None:
    """Raises where the command would be refused before it reads any data."""
    if words[0] == "make":
        targets = re.findall(
            r"^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M
        )
        assert set(words[1:]) <= {name for line in targets for name in line.split()}
    elif words[0] == "python":
        assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file()
    elif len(words) > 1 and words[1] not in NAMES and words[1:] != ["--help"]:
        assert words[1] in JOBS
        _check_job(words[1], words[2:])


def _check_job(job: str, options: list[str]) -> None:
    if not options or options == ["--help"]:
        return
    by_a_run = "--resume" in options or any(re.fullmatch(r"runs/.+\.yaml", word) for word in options)
    if "..." not in options and not by_a_run:  # else a run folder has the settings
        parse(job, options)
        return
    known = parser(job)._option_string_actions
    assert [word for word in options if word.startswith("--") and word.partition("=")[0] not in known] == []


@pytest.mark.parametrize("page", PAGES)
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


def test_commands_are_found_and_wrong_ones_too():
    found = [words for page in PAGES for words in commands(page)]
    assert {words[1] for words in found if words[0] == "distillery" and len(words) > 1} >= {
        "task",
        "export",
    }
    assert sum(words[0] == "distillery" for words in found) > 30
    for wrong in ("make tset", "distillery tsk", "distillery task --no 1", "distillery general ... --no 1"):
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
