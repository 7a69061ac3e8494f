"""The jobs from Python: what the command does, with its summary, its refusals and its failures."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.settings import CorpusConfig, PackingConfig, PregenerateConfig
from distill.report import ReportConfig
from distill.run_folder import held
from launcher.api import job_of, run
from launcher.jobs import JOBS, load
from launcher.settings import to_yaml
from tests.helpers import python_in, tree, write_documents

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tiny_corpus, tiny_tokenizer) -> PregenerateConfig:
    return PregenerateConfig(
        CorpusConfig(files=[tiny_corpus]), tiny_tokenizer, packing=PackingConfig(max_length=32), workers=1
    )


def test_every_job_with_a_run_folder_is_known_by_its_settings():
    for name, job in JOBS.items():
        if job.folder:
            kind = load(job.config)
            assert job_of(kind.__new__(kind)) == name
    with pytest.raises(ValueError, match="ReportConfig is of no job with a run folder"):
        run(ReportConfig(["a"]), "runs/a")


def test_a_job_runs_and_its_summary_comes_back(tmp_path, config, capsys):
    summary = run(config, tmp_path / "run")
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert f"finished: {tmp_path}/run" in capsys.readouterr().out
    again = shlex.split(
        (tmp_path / "run" / "command.txt").read_text()
    )  # its own recipe: the one given is gone
    assert again == ["distillery", "pregenerate", "--config", f"{tmp_path}/run/config.yaml"]
    before = tree(tmp_path)
    assert run(config, tmp_path / "run", resume=True) == summary
    config.seed = 1
    with pytest.raises(ValueError, match="holds another run"):
        run(config, tmp_path / "run")
    assert tree(tmp_path) == before


def test_a_setting_that_no_recipe_can_hold_is_refused(tmp_path, config):
    config.shard_mb = np.float64(0.5)
    with pytest.raises(ValueError, match="give plain numbers"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_setting_of_no_such_name_is_refused(tmp_path, config):
    config.packing.max_len = 32
    with pytest.raises(
        ValueError, match=r"config\.packing\.max_len: there is no such setting; there are .*max_length"
    ):
        run(config, tmp_path / "run")


def test_a_path_is_as_good_as_its_name(config):
    named = to_yaml(config)
    config.tokenizer = Path(config.tokenizer)
    assert to_yaml(config) == named


INTERRUPTED = """
import sys
from data_pipeline.corpus import CorpusConfig
from data_pipeline.pregenerate import PregenerateConfig
from launcher.api import run
corpus, tokenizer, folder = sys.argv[1:]
run(PregenerateConfig(CorpusConfig([corpus]), tokenizer, workers=1, shard_mb=0.004), folder)
"""


@pytest.mark.slow
def test_an_interrupt_ends_the_run_too(tmp_path, tiny_tokenizer):
    """Of the program alone, as a notebook's is; the folder is free when it has raised."""
    corpus, folder = write_documents(tmp_path / "corpus.txt", 4000, seed=0), tmp_path / "run"
    words = [sys.executable, "-c", INTERRUPTED, str(corpus), tiny_tokenizer, str(folder)]
    default = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=default)
    while len(list((folder / "shards" / "pieces").glob("0*.json"))) < 2:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=120)
    assert "KeyboardInterrupt" in said
    assert not (folder / "summary.json").exists()
    with held(folder):
        pass


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path, tiny_model, tiny_task, monkeypatch, capsys):
    shutil.copytree(tiny_model, tmp_path / "TEACHER")
    for name in ("train.tsv", "dev.tsv"):
        shutil.copy(tiny_task / name, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    page = "\n".join(python_in((ROOT / "docs" / "python.md").read_text(encoding="utf-8")))
    exec(compile(page.replace("heads=12", "heads=4"), "docs/python.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["teacher", "student"]
