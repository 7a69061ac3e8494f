"""The script that completes the command, in the shell that reads it."""

import shutil
import subprocess
import sys

import pytest

from launcher import cli

ASK = """
source {script}
COMP_WORDS=({words} "$1"); COMP_CWORD={at}
"$(complete -p distillery | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What bash offers for the last of some words."""
    script = tmp_path_factory.mktemp("bash") / "completion.bash"
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", "completion", "bash"], capture_output=True, check=True
    )
    script.write_bytes(done.stdout)

    def offered(*words: str) -> set[str]:
        ask = ASK.format(script=script, words=" ".join(words[:-1]), at=len(words) - 1)
        said = subprocess.run(
            [bash, "-c", ask, "bash", words[-1]], capture_output=True, text=True, check=True
        )
        return set(said.stdout.split())

    return offered


def test_jobs_settings_and_values_are_completed(complete):
    assert complete("distillery", "ta") == {"task"}
    assert {"--student.kind", "--student.layers"} <= complete("distillery", "task", "--student.")
    assert complete("distillery", "task", "--student.kind", "dense") == {"densenet_cnn", "densenet_dsa"}
    assert "slurm" in complete("distillery", "general", "--on", "")


@pytest.mark.parametrize("words", [["fish"], [], ["bash", "zsh"]])
def test_other_shells_are_refused(capsys, words):
    assert cli.main(["completion", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reader_that_has_had_enough_is_no_error():
    bash = shutil.which("bash")
    assert bash
    script = '"$0" -m launcher.cli completion bash | head -n 1; echo "${PIPESTATUS[0]}"'
    done = subprocess.run([bash, "-c", script, sys.executable], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "141"  # as of a program that SIGPIPE has ended
    assert done.stderr == ""
