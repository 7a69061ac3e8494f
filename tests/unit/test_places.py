"""Launching is a pure function from a job to words: what would run on Slurm and Ray, without either."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

import pytest
import yaml

from data_pipeline.settings import PregenerateConfig
from distill import preemption
from distill.preemption import EXIT_CODE, NOTHING_KEPT
from launcher import cli, jobs, local, node, rank, ray_place, slurm, submitted
from launcher.settings import Launch, job_of, parse, to_yaml
from tests.helpers import tree
from tests.unit.test_cli import AWKWARD, CONFIGS, GENERAL, ROOT, printed

CLOUD = ROOT / "launcher" / "cloud"


# --- Slurm -----------------------------------------------------------------------------------


def test_what_sbatch_is_given():
    launch = Launch(
        run="/runs/a b",
        on="slurm",
        nodes=2,
        gpus_per_node=8,
        cpus_per_node=64,
        time="4:00:00",
        partition="large",
        sbatch=["--account=me"],
    )
    assert slurm.command("general", launch, 8) == [
        *["env", f"DISTILLERY_PYTHON={sys.executable}", "sbatch", "--parsable"],
        *["--job-name=distillery-general", "--nodes=2", "--gpus-per-node=8", "--cpus-per-task=64"],
        *["--time=4:00:00", "--partition=large"],
        *["--export=ALL", "--output=/runs/a b/log.txt", "--account=me"],
        *[str(ROOT / "slurm" / "train.sbatch"), "general", "--run=/runs/a b", "--processes=8"],
    ]


def test_what_the_user_exports_is_not_ours_to_change():
    words = slurm.command("general", Launch(run="r", on="slurm", sbatch=["--export=ALL,A=1"]), 1)
    assert [word for word in words if word.startswith("--export")] == ["--export=ALL,A=1"]


@pytest.mark.parametrize("option", ["--export=NONE", "--export=ALLOWED", "--export-file=variables"])
def test_an_export_without_our_variables_is_refused(capsys, option):
    assert cli.main(["general", *GENERAL, "--on=slurm", f"--sbatch=[{option}]", "--dry-run"]) == 2
    assert f"{option} would keep from the job what it is told" in capsys.readouterr().err


def test_an_option_that_yaml_cuts_at_its_comma_is_refused(capsys):
    """sbatch would take what is left over for its script."""
    words = ["general", *GENERAL, "--on=slurm", "--dry-run", "--sbatch"]
    assert cli.main([*words, "[--exclude=n1,n2]"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("distillery general: error: --sbatch: n2 begins without -")
    assert said.count("\n") == 1
    assert " --exclude=n1,n2 " in printed(capsys, *words, '["--exclude=n1,n2"]')


@pytest.mark.parametrize("option", ["--output=out", "--error=out", "-oout", "-e out"])
def test_what_would_hide_the_log_is_refused(capsys, option):
    words = ["general", *GENERAL, "--on=slurm", "--dry-run"]
    assert cli.main([*words, f"--sbatch=[{option}]"]) == 2
    assert f"{option}: `distillery logs` shows the log in the run folder" in capsys.readouterr().err
    assert cli.main([*words, "--sbatch=[--open-mode=append, --exclusive, --extra=x]"]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--time=2"], "--time: 2 is 120 s to Slurm, and 120 s before"),
        (["--time=1:30"], "--time: 1:30 is 120 s to Slurm, and 120 s before"),
        (["--time=0:02:00"], "--time: 0:02:00 is 120 s to Slurm, and 120 s before"),
        (["--time=0-0:1"], "--time: 0-0:1 is 60 s to Slurm, and 120 s before"),
        (["--time=60", "--sbatch=[--time=2]"], "--sbatch: the time limit: 2 is 120 s"),
        (["--sbatch=[-t1]"], "--sbatch: the time limit: 1 is 60 s"),
        (["--time=10", "--sbatch=[--signal=B:USR1@600]"], "--time: 10 is 600 s to Slurm, and 600 s before"),
        (["--time=1", "--sbatch=[--signal=B:USR1]"], "--time: 1 is 60 s to Slurm, and 60 s before"),
    ],
)
def test_a_time_limit_that_is_over_with_its_warning_is_refused(capsys, options, said):
    """Such a job would be back in the queue each time that it begins, without end."""
    assert cli.main(["general", *GENERAL, "--on=slurm", "--dry-run", *options]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"distillery general: error: {said}")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--time=3"],
        ["--time=2:01"],
        ["--time=0:2:1"],
        ["--time=0-1"],
        ["--time=1-0"],
        ["--time=0"],
        ["--time=UNLIMITED"],
        ["--time=2", "--sbatch=[--time=4:00:00]"],
        ["--time=2", "--sbatch=[--signal=B:USR1@60]"],
        ["--sbatch=[--time-min=1]"],
    ],
)
def test_other_time_limits_are_taken(capsys, options):
    assert cli.main(["general", *GENERAL, "--on=slurm", "--dry-run", *options]) == 0


def test_the_script_asks_for_the_warning_that_a_time_limit_is_measured_by():
    for script in (ROOT / "slurm").glob("*.sbatch"):
        assert f"#SBATCH --signal=B:USR1@{slurm.WARNING}\n" in script.read_text()


def test_a_dry_run_refuses_an_environment_file_that_is_absent(capsys):
    code = cli.main(["general", *GENERAL, "--on", "slurm", "--environment", "nowhere.sh", "--dry-run"])
    assert (code, "--environment: no file nowhere.sh" in capsys.readouterr().err) == (2, True)


def test_following_a_log_outlives_a_controller_that_does_not_answer(tmp_path, monkeypatch, capsys):
    answers = [ValueError("squeue: timed out"), ("RUNNING", ""), ValueError("squeue: timed out"), ("", "")]

    def state(record: dict[str, str]) -> tuple[str, str]:
        answer = answers.pop(0)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    (tmp_path / "log.txt").write_text("step 1\n")
    monkeypatch.setattr(slurm, "state", state)
    monkeypatch.setattr(slurm.time, "sleep", lambda _: None)
    assert slurm.logs({"job": "1", "run": str(tmp_path)}, follow=True) == 0
    assert capsys.readouterr().out == "step 1\n"
    assert answers == []


def test_a_run_by_hand_is_known_by_its_job(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "run_processes", lambda *_: 75)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for number in ("7", "8"):  # begun anew in the same folder
        monkeypatch.setenv("SLURM_JOB_ID", number)
        node.start("general", Launch(run=str(tmp_path), on="node"), 1)
        assert submitted.read(tmp_path) == {"place": "slurm", "job": number, "run": str(tmp_path)}


def test_what_a_run_by_hand_says_is_read_where_sbatch_wrote_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local, "run_processes", lambda *_: 75)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("DISTILLERY_LOG", str(tmp_path / "slurm-7.out"))
    (tmp_path / "slurm-7.out").write_text("step 1\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    node.start("general", Launch(run=str(tmp_path / "run"), on="node"), 1)
    assert printed(capsys, "logs", str(tmp_path / "run"), "--follow=false") == "step 1\n"


def test_a_terminal_is_no_log(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "run_processes", lambda *_: 75)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("DISTILLERY_LOG", os.devnull)
    node.start("general", Launch(run=str(tmp_path), on="node"), 1)
    assert "log" not in submitted.read(tmp_path)


def test_processes_that_share_too_few_cpus_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local, "run_processes", lambda *_: 75)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    node.start("general", Launch(run=str(tmp_path), on="node"), 1)
    assert capsys.readouterr().err == ""
    node.start("general", Launch(run=str(tmp_path), on="node"), 8)
    assert "8 processes share 1 CPUs on this node; --cpus-per-node" in capsys.readouterr().err


def test_a_pregeneration_over_nodes_is_an_array():
    words = slurm.command("pregenerate", Launch(run="/runs/c", on="slurm", nodes=5), 1)
    assert {"--nodes=1", "--array=1-5", "--output=/runs/c/log-%a.txt"} <= set(words)
    assert not any(word.startswith("--processes") for word in words)


@pytest.mark.parametrize("name", AWKWARD)
def test_a_name_is_one_word_for_every_place(name):
    launch = Launch(run=name, on="slurm")
    run = str(Path(name).absolute())
    assert f"--run={run}" in slurm.command("general", launch, 1)
    assert shlex.split(slurm.describe("general", launch, 1)) == slurm.command("general", launch, 1)
    assert ray_place.plan("general", Launch(run=name, on="ray"), 1).run == run


def test_slurms_patterns_in_a_name_stay_as_they_are():
    assert "--output=/runs/100%%j/log.txt" in slurm.command("task", Launch(run="/runs/100%j"), 1)


@pytest.mark.parametrize("place", ["slurm", "ray"])
def test_a_dry_run_prints_what_the_place_would_run(capsys, monkeypatch, place):
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    arguments = ["general", *GENERAL, "--run", "my run", f"--on={place}", "--nodes=2", "--dry-run"]
    out = printed(capsys, *arguments)
    launch = Launch(run="my run", on=place, nodes=2)
    module = {"slurm": slurm, "ray": ray_place}[place]
    assert out.strip().endswith(module.describe("general", launch, 1))


def test_the_script_is_given_words_that_the_command_takes(capsys, monkeypatch):
    """What sbatch passes on to the nodes, with what the script adds, is a command of ours."""
    monkeypatch.setenv("SLURM_NODEID", "1")
    launch = Launch(run="my run", on="slurm", nodes=2)
    words = slurm.command("general", launch, 4)
    given = words[words.index(str(slurm.SCRIPT)) + 1 :]
    out = printed(capsys, *given, *GENERAL, "--on=node", "--resume", "--dry-run")
    assert shlex.split(out.strip().splitlines()[-1])[-2:] == ["general", str(Path("my run").absolute())]


ALLOCATION = {
    "SLURM_JOB_ID": "20007",
    "SLURM_STEP_NUM_NODES": "2",
    "DISTILLERY_HOSTS": "n1 n2",
    "DISTILLERY_ADDRESS": "10.0.0.2",
}


def test_nodes_meet_at_the_first():
    first, second = (node.rendezvous({**ALLOCATION, "SLURM_NODEID": number}) for number in "01")
    where = ("--master-addr=n1", "--master-port=28007", "--rdzv-id=20007-0", "--rdzv-conf=timeout=900")
    assert first == ("--nnodes=2", "--node-rank=0", *where, "--local-addr=10.0.0.2")
    assert second == ("--nnodes=2", "--node-rank=1", *where, "--local-addr=10.0.0.2")
    command = local.command("general", "run", 1, second)
    assert command[1:3] == ["-m", "launcher.torchrun"]  # one process too, where there are nodes


def test_one_node_needs_nobody():
    assert node.rendezvous({"SLURM_JOB_ID": "1", "DISTILLERY_HOSTS": "n1"}) == local.STANDALONE


def test_nodes_that_do_not_know_each_other_are_refused():
    """Each would train alone: srun did not pass the script's variables on."""
    alone = {name: value for name, value in ALLOCATION.items() if name != "DISTILLERY_HOSTS"}
    with pytest.raises(ValueError, match="DISTILLERY_HOSTS names 0 of 2 nodes"):
        node.rendezvous(alone)


def test_connections_stay_on_the_clusters_interface_unless_the_user_says_so():
    ours = {"DISTILLERY_ADDRESS": "10.0.0.2", "GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0"}
    assert node.network({}, "10.0.0.2", "eth0") == ours
    del ours["NCCL_SOCKET_IFNAME"]
    assert node.network({"NCCL_SOCKET_IFNAME": "ib0"}, "10.0.0.2", "eth0") == ours


def test_the_interface_by_which_this_machine_reaches_itself():
    assert node.interface_to("127.0.0.1") == ("127.0.0.1", "lo")


def test_a_node_without_an_address_is_named():
    with pytest.raises(ValueError, match=r"no address of the node n7\.invalid \("):
        node.interface_to("n7.invalid")


@pytest.mark.parametrize(("task", "part"), [("3", "1/4"), ("6", "4/4")])
def test_a_task_of_an_array_makes_a_slice(task, part):
    array = {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "6", "SLURM_ARRAY_TASK_ID": task}
    config, launch = node.own_part(PregenerateConfig(), Launch(run="runs/c", on="node"), array)
    assert (config.slice, config.shards) == (part, "runs/c/shards")
    assert launch.run == f"runs/c/slice-{part.replace('/', '-of-')}"
    with pytest.raises(ValueError, match="array"):
        node.own_part(object(), launch, array)
    with pytest.raises(ValueError, match=r"an array with gaps .*--array=1-4"):
        node.own_part(PregenerateConfig(), launch, {**array, "SLURM_ARRAY_TASK_COUNT": "2"})


# --- Ray -------------------------------------------------------------------------------------


AT = ["--on", "ray", "--address", "http://h:8265", "--dry-run", "--storage"]


@pytest.mark.parametrize("storage", ["ftp://host/runs", "runs"])
def test_storage_that_is_no_folder_is_refused(capsys, storage):
    assert cli.main(["general", *GENERAL, *AT, storage]) == 2
    assert f"--storage: {storage} is no absolute path" in capsys.readouterr().err


def test_a_bucket_holds_no_search_and_no_corpus(capsys):
    assert cli.main(["pregenerate", "--tokenizer=x", *AT, "s3://bucket/runs"]) == 2
    said = capsys.readouterr().err
    assert (
        "s3://bucket/runs is a bucket, which holds runs of general, pretrain, finetune, task; preg" in said
    )


def test_a_run_in_a_bucket_is_a_url(capsys):
    storage = "s3://bucket/my runs?endpoint_override=http://minio:9000"
    out = printed(capsys, "general", *GENERAL, *AT, storage, "--run", 'a "b"#?')
    assert '"run": "s3://bucket/my runs/a%20%22b%22%23%3F?endpoint_override=http://minio:9000"' in out


def test_credentials_in_a_url_are_refused_before_anything_is_written(capsys, tmp_path):
    run = tmp_path / "run"
    storage = "s3://KEY:SECRET@bucket/runs"
    command = ["general", *GENERAL, "--on", "ray", "--storage", storage, "--run", str(run)]
    assert cli.main([*command, "--dry-run"]) == 2
    assert cli.main(command) == 2
    assert "SECRET" not in capsys.readouterr().err
    assert not run.exists()


def test_a_plan_for_ray():
    nodes = {"nodes": 2, "gpus_per_node": 4, "cpus_per_node": 16}
    launch = Launch(run="/here/a", on="ray", **nodes, storage="/mnt/s", max_failures=7)
    assert asdict(ray_place.plan("task", launch, 4)) == {
        "job": "task",
        "run": "/mnt/s/a",
        "nodes": 2,
        "processes": 4,
        "gpus": 1.0,
        "cpus": 4.0,
        "max_failures": 7,
        "resume": False,
        "address": "",
    }


def test_rays_variable_is_an_address_as_any_other(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert ray_place.submits(Launch(run="r", on="ray"))
    assert "--address=http://head:8265" in ray_place.describe("general", Launch(run="r", on="ray"), 1)
    assert not ray_place.submits(Launch(run="r", on="ray", address="other:6379"))


def test_rays_variable_does_not_overrule_the_address_of_a_run(monkeypatch):
    """Ray's commands take it before their --address."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "http://another:8265")
    said = ray_place._ask([sys.executable, "-c", "import os; print(*os.environ.values())", "", ""])
    assert "another" not in said


@pytest.mark.parametrize("address", ["", "head:6379"])
def test_a_ray_of_this_machine_has_a_token_of_its_own(monkeypatch, tmp_path, address):
    """Ray itself would take that of ~/.ray, which others may read."""
    seen: dict[str, str] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_TOKEN": "of another"})
    monkeypatch.setattr(os, "execv", lambda *_: (seen.update(os.environ), sys.exit()))
    with pytest.raises(SystemExit):
        ray_place.start("general", Launch(run=str(tmp_path), on="ray", address=address), 1)
    assert (seen["RAY_AUTH_TOKEN"] == "of another") == bool(address)
    assert seen.get("RAY_AUTH_MODE", "") == ("" if address else "token")


def test_what_the_user_typed_is_in_no_ray_jobs_command():
    """Ray gives it to a shell."""
    launch = Launch(run="$(touch owned)", on="ray", address="http://head:8265")
    words = ray_place.submission(launch, "/files", "name")
    assert words[words.index("--") + 1 :] == ["python", "-m", "launcher.ray_driver", "."]


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time=1:00"], "--time is for --on slurm; this is --on local"),
        (["--on=slurm", "--address=x"], "--address is for --on ray; this is --on slurm"),
        (["--on=slurm", "--nodes=0"], "--nodes: 0; give 1 or more"),
        (["--on=slurm", "--cpus-per-node=-2"], "--cpus-per-node: -2; give 0 or more"),
        (["--on=ray", "--gpus-per-node=-1"], "--gpus-per-node: -1; give 0 or more"),
        (["--on=ray", "--max-failures=-5"], "--max-failures: -5; give -1 or more"),
    ],
)
def test_an_option_that_can_not_be_is_refused(capsys, arguments, message):
    assert cli.main(["general", *GENERAL, *arguments, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


SEARCH = ["tune", "--base.teacher.path=t", "--base.task.train=a", "--base.task.dev=b", "--space={}"]


@pytest.mark.parametrize(
    ("option", "setting"),
    [("max-failures", "retries"), ("gpus-per-node", "gpus"), ("cpus-per-node", "cpus")],
)
def test_a_search_has_a_setting_for_it(capsys, option, setting):
    assert cli.main([*SEARCH, "--on=ray", f"--{option}=7", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert f"--{option}: tune starts its workers itself; give --workers.{setting}\n" in said


@pytest.mark.parametrize("place", ["local", "node"])
def test_a_search_here_joins_no_dashboard(capsys, monkeypatch, tmp_path, place):
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*SEARCH, f"--on={place}"]) == 2
    said = capsys.readouterr().err
    assert "error: RAY_ADDRESS: http://head:8265 is a dashboard's" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
    printed(capsys, *SEARCH, "--on=ray", "--dry-run")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    printed(capsys, *SEARCH, f"--on={place}", "--dry-run")


def test_a_search_on_slurm_asks_for_what_its_node_is_to_have(capsys):
    words = ["--on=slurm", "--gpus-per-node=2", "--cpus-per-node=4", "--dry-run"]
    assert "--gpus-per-node=2 --cpus-per-task=4" in printed(capsys, *SEARCH, *words)


@pytest.mark.parametrize("option", ["--gres=gpu:8", "--gpus=16", "--gpus-per-task=1", "-G8"])
def test_gpus_that_only_sbatch_knows_of_are_refused(capsys, option):
    arguments = ["general", *GENERAL, "--on=slurm", f"--sbatch=[{option}]", "--dry-run"]
    assert cli.main(arguments) == 2
    assert f"{option}: one process would run on each node" in capsys.readouterr().err
    assert cli.main([*arguments, "--processes=8"]) == 0


def test_nodes_without_an_array_are_refused_a_pregeneration(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "4")
    assert cli.main(["pregenerate", "--tokenizer=x", "--on=node", "--resume"]) == 2
    assert "give sbatch --array=1-4" in capsys.readouterr().err


def test_a_node_waits_for_the_first_to_begin_the_run(
    capsys, monkeypatch, tiny_model, tiny_shards, tmp_path
):
    monkeypatch.setattr(node, "WAIT_S", 0.0)
    for name, value in {**ALLOCATION, "SLURM_NODEID": "1"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "log.txt").write_text("as sbatch makes it\n")
    words = ["--teacher.path", tiny_model, "--shards", tiny_shards, "--stage.batch_size=16"]
    words += ["--student.layers=2", "--student.hidden_size=24", "--student.heads=4", "--processes=1"]
    assert cli.main(["general", *words, "--on=node", "--resume", f"--run={tmp_path}"]) == 2
    assert "no run in it after 0 s" in capsys.readouterr().err


def test_a_job_back_from_the_queue_runs_with_the_settings_it_began_with(capsys, monkeypatch, tmp_path):
    words = ["--on=node", "--resume", "--dry-run", f"--run={tmp_path}"]
    began = printed(capsys, "general", *GENERAL, "--seed=3", *words).splitlines()
    (tmp_path / "config.yaml").write_text("\n".join(began[1:-1]))
    assert "seed: 4" in printed(capsys, "general", *GENERAL, "--seed=4", *words)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "seed: 3" in printed(capsys, "general", *GENERAL, "--seed=4", *words)
    for recipe in (["general", "--config=gone.yaml", "--no.such", "setting"], ["gone.yaml"]):
        assert "seed: 3" in printed(capsys, *recipe, "--processes", "2", *words)
    for value in ("resume", "run", "time"):  # a column, say: no option of ours
        assert "seed: 3" in printed(capsys, "general", "--corpus", value, *words)


@pytest.mark.parametrize("place", ["node", "ray"])
def test_so_it_does_in_the_jobs_own_folder(capsys, monkeypatch, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    words = ["recipe.yaml", f"--on={place}", "--resume", "--dry-run"]
    recipe, folder = Path("recipe.yaml"), Path("runs", "general")
    recipe.write_text("teacher: {path: t}\nshards: s\nstage: {epochs: 2}\nseed: 3\n")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(parse("general", ["--config", str(recipe)])[0]))
    recipe.write_text(recipe.read_text().replace("seed: 3", "seed: 4"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "seed: 3" in printed(capsys, *words)


def test_nodes_that_a_job_has_no_use_for_are_refused(capsys):
    arguments = ["evaluate", "--models={}", "--task.train=x", "--task.dev=x", "--on=slurm", "--nodes=2"]
    assert cli.main([*arguments, "--dry-run"]) == 2
    assert "the job evaluate runs on one" in capsys.readouterr().err


def test_a_batch_that_the_nodes_cannot_share_is_refused_at_submission(
    capsys, tiny_model, tiny_shards, tmp_path
):
    arguments = ["--teacher.path", tiny_model, "--shards", tiny_shards, "--stage.batch_size=16"]
    shape = ["--student.layers=2", "--student.hidden_size=24", "--student.heads=4"]
    place = ["--on=slurm", "--nodes=3", f"--run={tmp_path / 'run'}"]
    assert cli.main(["general", *arguments, *shape, *place]) == 2
    assert "batch_size: 16 can't be shared by 3 processes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_slurm_a_line_says_so(capsys, monkeypatch, tiny_corpus, tiny_tokenizer, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    corpus = ["--corpus.files", json.dumps([tiny_corpus]), "--tokenizer", tiny_tokenizer]
    assert cli.main(["pregenerate", *corpus, "--on=slurm", f"--run={tmp_path / 'run'}"]) == 2
    assert "no sbatch here" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(local, "start", lambda *_: 0)
    assert cli.main(["pregenerate", *corpus, f"--run={tmp_path / 'run'}"]) == 0
    before = tree(tmp_path / "run")
    assert cli.main(["pregenerate", "--on=slurm", f"--run={tmp_path / 'run'}", "--resume"]) == 2
    assert tree(tmp_path / "run") == before  # a run that had begun stays


def test_an_environment_file_that_is_not_there_is_refused(
    capsys, monkeypatch, tiny_corpus, tiny_tokenizer, tmp_path
):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    corpus = ["--corpus.files", json.dumps([tiny_corpus]), "--tokenizer", tiny_tokenizer]
    words = ["pregenerate", *corpus, "--on=slurm", f"--run={tmp_path / 'run'}", "--environment=my.sh"]
    assert cli.main(words) == 2
    assert "--environment: no file my.sh" in capsys.readouterr().err
    command = slurm.command("general", Launch(run="r", environment="my.sh"), 1)
    assert f"DISTILLERY_ENVIRONMENT={Path('my.sh').absolute()}" in command


# --- submitted runs --------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run that was submitted, and is running."""
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    submitted.write(tmp_path, {"place": "slurm", "job": "7", "run": str(tmp_path)})
    monkeypatch.setattr(slurm, "state", lambda record: (f"{record['job']} RUNNING for 0:10", ""))
    return tmp_path


def test_the_status_of_a_running_job(capsys, run):
    row = {"stage": "general", "step": 12, "loss": 0.25, "time": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + '\n{"stage": "gen')
    out = printed(capsys, "status", str(run))
    assert "slurm job 7: 7 RUNNING for 0:10" in out
    assert "general step 12  loss 0.25" in out


def test_the_status_of_a_job_that_has_ended(capsys, run, monkeypatch):
    monkeypatch.setattr(slurm, "state", lambda record: ("", ""))
    assert "ended without finishing" in printed(capsys, "status", str(run))
    (run / "summary.json").write_text("{}")
    assert "finished; see" in printed(capsys, "status", str(run))


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ("general", "the same command with --resume continues from the last checkpoint"),
        ("evaluate", "evaluate keeps nothing on the way: the same command with --resume runs it anew"),
    ],
)
def test_what_has_ended_is_continued_where_its_job_keeps_something(capsys, run, monkeypatch, job, told):
    monkeypatch.setattr(slurm, "state", lambda record: ("", ""))
    (run / "config.yaml").write_text(to_yaml(CONFIGS[job]))
    assert f"ended without finishing; {told}" in printed(capsys, "status", str(run))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Job 'x-1' succeeded", "finished; see /mnt/s/a on the cluster"),
        ("Job 'x-1' failed", "FAILED: ended without finishing"),
        ("Job 'x-1' was stopped", "STOPPED: ended without finishing"),
    ],
)
def test_the_last_word_of_a_ray_cluster_is_kept(capsys, tmp_path, monkeypatch, said, told):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    submitted.write(tmp_path, {"place": "ray", "job": "x-1", "address": "http://h:8265", "run": "/mnt/s/a"})
    answers = [said]
    monkeypatch.setattr(ray_place, "_ask", lambda _: answers.pop())
    assert told in printed(capsys, "status", str(tmp_path))
    assert told in printed(capsys, "status", str(tmp_path))  # without asking it again


def test_one_run_whose_cluster_has_gone_hides_no_other(capsys, run, monkeypatch, tmp_path):
    monkeypatch.setattr(slurm, "state", lambda _: (_ for _ in ()).throw(ValueError("squeue: no answer")))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("seed: 0\n")
    assert cli.main(["status", str(run), "nowhere", str(other)]) == 2
    said = capsys.readouterr()
    assert f"{other}: not submitted" in said.out
    assert f"error: {run}: squeue: no answer\n" in said.err
    assert "error: nowhere: is no run folder" in said.err


def test_one_run_that_can_not_be_cancelled_keeps_no_other(capsys, run, monkeypatch, tmp_path):
    cancelled = []
    monkeypatch.setattr(slurm, "cancel", lambda record: cancelled.append(record["job"]))
    assert cli.main(["cancel", "nowhere", str(run)]) == 2
    assert capsys.readouterr().err == (
        "distillery cancel: error: nowhere: is no run folder (no config.yaml there)\n"
    )
    assert cancelled == ["7"]


DAMAGED = ['{"place": "slurm"}', '{"place": "moon", "job": "7", "run": "r"}', "[]", "half a li"]


@pytest.mark.parametrize("record", DAMAGED)
@pytest.mark.parametrize("name", ["status", "cancel", "logs"])
def test_a_damaged_record_is_told(capsys, run, name, record):
    (run / "place.json").write_text(record)
    assert cli.main([name, str(run)]) == 2
    said = capsys.readouterr().err
    assert f"{run / 'place.json'} is damaged; remove it" in said
    assert said.count("\n") == 1


def test_the_status_passes_over_lines_that_tell_no_step(capsys, run):
    row = {"stage": "general", "step": 12}
    lines = [json.dumps(row), '{"loss": 0.5}', '{"stage": "general", "step": 13, "loss": null}', "5"]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert printed(capsys, "status", str(run)).endswith("  general step 12\n")


def test_logs_are_followed_to_the_end(capsys, run, monkeypatch):
    states = ["running", "running", ""]
    said = ["a\n", "b\n", "c\n"]

    def state(record: dict[str, str]) -> tuple[str, str]:
        with (run / "log.txt").open("a") as file:
            file.write(said[-len(states)])
        return states.pop(0), ""

    monkeypatch.setattr(slurm, "state", state)
    monkeypatch.setattr(slurm.time, "sleep", lambda _: None)
    assert printed(capsys, "logs", str(run)) == "a\nb\nc\n"


def test_a_character_that_is_being_written_is_shown_whole(capsys, run, monkeypatch):
    said = ["ü".encode()[:1], "ü".encode()[1:], b"\n"]

    def state(record: dict[str, str]) -> tuple[str, str]:
        with (run / "log.txt").open("ab") as file:
            file.write(said.pop(0))
        return "running" * bool(said), ""

    monkeypatch.setattr(slurm, "state", state)
    monkeypatch.setattr(slurm.time, "sleep", lambda _: None)
    assert printed(capsys, "logs", str(run)) == "ü\n"


@pytest.mark.parametrize("name", ["status", "logs", "cancel"])
def test_what_is_no_submitted_run_is_refused(capsys, name, tmp_path):
    assert cli.main([name, str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_a_run_that_is_in_the_queue_is_not_submitted_again(
    capsys, run, tiny_corpus, tiny_tokenizer, monkeypatch
):
    corpus = ["--corpus.files", json.dumps([tiny_corpus]), "--tokenizer", tiny_tokenizer]
    (run / "place.json").rename(run.parent / "kept")
    (run / "config.yaml").unlink()
    monkeypatch.setattr(slurm, "start", lambda *_: 0)
    assert cli.main(["pregenerate", *corpus, f"--run={run}", "--on=slurm"]) == 0
    (run.parent / "kept").rename(run / "place.json")
    assert cli.main(["pregenerate", f"--run={run}", "--on=slurm", "--resume"]) == 2
    assert "is still at work" in capsys.readouterr().err
    monkeypatch.setattr(slurm, "state", lambda _: (_ for _ in ()).throw(ValueError("squeue: no answer")))
    assert cli.main(["pregenerate", f"--run={run}", "--on=slurm", "--resume"]) == 2
    assert f"(squeue: no answer); where its cluster has gone, remove {run}" in capsys.readouterr().err


# --- recipes and files -----------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_says_which_job_it_is(recipe):
    typed = recipe.read_text(encoding="utf-8")
    assert f"distillery {job_of(str(recipe))} " in typed or "distillery" not in typed


def test_a_recipe_of_no_job_is_refused(capsys, tmp_path):
    (tmp_path / "x.yaml").write_text("seed: 1\n")
    assert cli.main([str(tmp_path / "x.yaml")]) == 2
    assert "not those of one job" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["aws", "gcp", "azure", "local"])
def test_a_cluster_file_fits_rays_schema(name):
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = yaml.safe_load((CLOUD / f"{name}.yaml").read_text(encoding="utf-8"))
    util.validate_config(util.prepare_config(config))  # as `ray up` does
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert any("RAY_AUTH_MODE=token" in line for line in config["setup_commands"])
    assert any("constraints.txt" in line for line in config["setup_commands"])
    if "available_node_types" in config:
        head, worker = (config["available_node_types"][kind] for kind in ("head", "worker"))
        assert "spot" not in yaml.dump(head).lower()
        assert "spot" in yaml.dump(worker).lower()
        assert worker["min_workers"] == 0


@pytest.mark.parametrize(("name", "provider"), [("aws", "aws"), ("gcp", "gcp"), ("azure", "_azure")])
def test_machines_that_ray_down_stops_are_given_back(name, provider):
    """Stopped only, they cost on; Ray's own default differs from cloud to cloud."""
    private = pytest.importorskip("ray.autoscaler._private")
    source = Path(private.__path__[0], provider, "node_provider.py").read_text(encoding="utf-8")
    keeps = 'provider_config.get("cache_stopped_nodes", True)' in source
    assert keeps or 'provider_config.get("cache_stopped_nodes", False)' in source
    config = yaml.safe_load((CLOUD / f"{name}.yaml").read_text(encoding="utf-8"))
    assert config["provider"].get("cache_stopped_nodes", keeps) is False


def given_to_pip(name: str, commands: str, home: Path) -> list[str]:
    """What a cluster's commands give to pip: bash itself says it."""
    config = yaml.safe_load((CLOUD / f"{name}.yaml").read_text(encoding="utf-8"))
    (line,) = [line for line in config[commands] if "pip install" in line]
    assert line.startswith("~/venv/bin/pip ")
    words = ["bash", "-c", line.replace("~/venv/bin/pip", r"printf %s\\n", 1)]
    said = subprocess.run(words, env={"HOME": str(home)}, capture_output=True, text=True, check=True)
    return said.stdout.splitlines()


@pytest.mark.parametrize("name", ["aws", "gcp", "azure", "local"])
def test_a_cluster_installs_the_folder_that_was_copied(name, tmp_path):
    (tmp_path / "distilleryr").touch()  # what an unquoted [ray] would match
    given = given_to_pip(name, "setup_commands", tmp_path)
    assert given[-1] == f"{tmp_path}/distillery[ray,tune,urls]"
    assert f"{tmp_path}/distillery/constraints.txt" in given


def test_azures_packages_are_those_that_ray_knows(tmp_path):
    """azure-mgmt-resource 25 has not the names that Ray 2.60 imports."""
    assert "azure-mgmt-resource<25" in given_to_pip("azure", "head_setup_commands", tmp_path)
    assert "azure-mgmt-resource<25" in (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")


def test_the_manifest_for_kubernetes_is_one_that_ray_reads():
    """As Ray's autoscaler does in the head's pod."""
    kuberay = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    manifest = yaml.safe_load((CLOUD / "rayjob.yaml").read_text(encoding="utf-8"))
    spec = manifest["spec"]
    ray = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:5] == "ray==")
    assert spec["rayClusterSpec"]["rayVersion"] == ray.removeprefix("ray==")
    assert f"FROM rayproject/ray:{ray.removeprefix('ray==')}-py311-gpu" in (
        ROOT / "docs" / "clusters.md"
    ).read_text(encoding="utf-8")
    cluster = {"metadata": {"namespace": "default", "name": "x"}, "spec": spec["rayClusterSpec"]}
    config = kuberay._derive_autoscaling_config_from_ray_cr(cluster)
    pytest.importorskip("ray.autoscaler._private.util").validate_config(config)
    workers = config["available_node_types"]["workers"]
    assert (workers["max_workers"], workers["resources"]["GPU"]) == (4, 1)
    words = shlex.split(spec["entrypoint"])
    assert words[0] == "distillery"
    assert words[1] in jobs.JOBS


# --- stopping --------------------------------------------------------------------------------


def test_a_warned_run_stops_with_a_code_of_its_own():
    assert len({EXIT_CODE, NOTHING_KEPT, 0, 1, 2, 130}) == 6


def test_a_wish_to_stop_that_comes_while_a_job_starts_is_heard(tmp_path):
    """Its settings are a pipe that nobody writes to: told twice, it stops once, without a traceback."""
    os.mkfifo(tmp_path / "config.yaml")
    start = "import sys; from launcher import local; sys.exit(local.run_processes('label', sys.argv[1], 1))"
    with subprocess.Popen(
        [sys.executable, "-c", start, tmp_path], stderr=subprocess.PIPE, text=True
    ) as job:
        while not any(map(local._is_listening_rank, local.children(job.pid))):
            assert job.poll() is None
        job.send_signal(signal.SIGUSR1)
        _, said = job.communicate()
    assert job.returncode == EXIT_CODE
    assert "stopped, as asked; continue with: distillery label" in said
    assert "Traceback" not in said


A_RANK_AND_ITS_CHILD = """
import os, signal, sys, time
rank = os.getpid()
def note(*_):
    with open(sys.argv[1], "a") as file:
        file.write("rank\\n" if os.getpid() == rank else "child\\n")
signal.signal(signal.SIGUSR1, note)
child = os.fork()
if child:
    signal.pause()
    time.sleep(0.5)  # the child would be told in the same moment
    os.kill(child, signal.SIGKILL)
else:
    open(sys.argv[1], "a").close()
    while True:
        signal.pause()
"""


def test_a_wish_to_stop_does_not_reach_what_a_rank_starts(tmp_path):
    """A compiler, say: until it runs it is the rank's own image, and the signal would kill it."""
    told, news = tmp_path / "told", SimpleQueue()
    command = [sys.executable, "-c", A_RANK_AND_ITS_CHILD, told, "launcher.rank"]
    with subprocess.Popen(command) as process:
        while not told.exists():
            assert process.poll() is None
        assert all(map(local._is_listening_rank, [process.pid, *local.children(process.pid)]))
        news.put(None)
        local._pass_on([signal.SIGUSR1], news, process)
    assert told.read_text() == "rank\n"


@contextmanager
def as_before():
    """Answer signals afterwards as before."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_wish_to_stop_raises_once_at_most(monkeypatch, at_once):
    monkeypatch.setattr(preemption, "_asked", False)
    with as_before():
        preemption.listen(at_once)
        with pytest.raises(preemption.Stopped) if at_once else nullcontext():
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert preemption.asked()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_second_ctrl_c_ends_what_the_first_does_not(monkeypatch, at_once):
    monkeypatch.setattr(preemption, "_asked", False)
    monkeypatch.setattr(preemption, "_interrupted", False)
    with as_before():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        preemption.listen(at_once)
        with pytest.raises(KeyboardInterrupt) if at_once else nullcontext():
            signal.raise_signal(signal.SIGINT)
        assert preemption.asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_background_hears_no_ctrl_c(monkeypatch):
    monkeypatch.setattr(preemption, "_asked", False)
    with as_before():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        preemption.listen(at_once=True)
        signal.raise_signal(signal.SIGINT)
        assert not preemption.asked()


def test_a_file_is_a_wish_to_stop_where_no_signal_reaches(monkeypatch, tmp_path):
    monkeypatch.setattr(preemption, "_asked", False)
    monkeypatch.setattr(preemption, "_file", None)
    preemption.watch(tmp_path / "stop")
    assert not preemption.asked()
    (tmp_path / "stop").touch()
    assert preemption.asked()


@pytest.mark.parametrize(("asked", "code"), [(True, EXIT_CODE), (False, 2)])
def test_a_worker_that_the_wish_ended_is_no_failure(capsys, monkeypatch, tmp_path, asked, code):
    """Slurm tells every process of a step, a pregeneration's workers too."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(preemption, "listen", lambda at_once: None)
    monkeypatch.setattr(preemption, "_asked", asked)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)  # that of other tests
    (tmp_path / "config.yaml").write_text("tokenizer: none\n")
    assert rank.main("pregenerate", str(tmp_path)) == code
    assert ("continue with: " in capsys.readouterr().err) == asked
    assert (tmp_path / "error.txt").exists() != asked


# --- scripts ---------------------------------------------------------------------------------


def test_the_scripts_pass_shellcheck():
    command = shutil.which("shellcheck")
    if command is None:
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    scripts = sorted(map(str, (ROOT / "slurm").iterdir()))
    assert subprocess.run([command, *scripts], check=False).returncode == 0


def stand_ins(folder: Path, lines: dict[str, str]) -> dict[str, str]:
    """An environment in which commands are these lines of bash."""
    for name, line in lines.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


SLURM = {  # of nodes that each have a /tmp of their own
    "srun": """node=n1
        while [[ $1 == -* ]]; do [[ $1 != --nodelist=* ]] || node=${1#*=}; shift; done
        mkdir -p "$node"; RAY_TMPDIR=$PWD/$node${RAY_TMPDIR#/tmp} exec "$@\"""",
    "getent": "echo 127.0.0.1",
    "scancel": ":",
    "squeue": "echo RUNNING",
    "scontrol": """[[ $2 != hostnames ]] || exec printf 'n1\\nn2\\n'
        echo "$* JobId=7 PreemptTime=$PREEMPTED" >> asked; tail -n 1 asked""",
}


RAY = """mkdir -p "$RAY_TMPDIR/ray"
        (trap '' TERM; for _ in {1..50}; do sleep 0.1; mkdir -p "$RAY_TMPDIR/ray"; done) &
        exec sleep infinity"""


def run_script(name: str, folder: Path, job: str, *words: str, **own: str) -> tuple[int, str]:
    """Run a script of slurm/ with these words, among commands that stand for Slurm's, and for a `job` and
    Ray; then all that is left is told to end. Returns its exit code and what it said.
    """
    python = f"[[ $* == *launcher.cli* ]] || {{ {RAY}; }}\n{job}"
    own |= stand_ins(folder, {**SLURM, "python": python}) | {"DISTILLERY_PYTHON": f"{folder}/python"}
    own |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    own |= {"SLURM_JOB_CPUS_PER_NODE": "1(x2)", "SLURM_CPUS_ON_NODE": "1"}
    said = folder / "said"
    with said.open("w") as file, socket.create_server(("127.0.0.1", 0)) as head:
        script = subprocess.Popen(
            ["bash", ROOT / "slurm" / name, *words],
            cwd=folder,
            env={**own, "DISTILLERY_PORT": str(head.getsockname()[1])},
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
        )
        code = script.wait()
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGTERM)
        script.communicate()  # until all have ended
    return code, said.read_text()


WARNED = 'trap : USR1; kill -USR1 "$PPID"; until grep -q warned said; do sleep 0.1; done; exit "$ENDS"'


@pytest.mark.parametrize("script", ["train.sbatch", "ray.sbatch"])
@pytest.mark.parametrize(
    ("ends", "preempted", "again"),
    [(75, "None", True), (76, "None", False), (76, "2026-01-01T00:00:00", True)],
)
def test_a_job_that_keeps_nothing_is_not_queued_again_at_its_time_limit(
    tmp_path, script, ends, preempted, again
):
    code, said = run_script(
        script, tmp_path, WARNED, "evaluate", ENDS=str(ends), PREEMPTED=preempted, DISTILLERY_GRACE="30"
    )
    assert code == ends
    assert "checkpoint" not in said  # whether it keeps one is its own to say
    asked = tmp_path / "asked"
    assert (asked.exists() and "requeue 7" in asked.read_text()) == again
    assert ("give a longer --time" in said) != again


@pytest.mark.parametrize("before", [[], ["n2"], ["n1", "n2"]])
def test_a_ray_cluster_leaves_no_folder_on_its_nodes(tmp_path, before):
    """But one that was there before. What Ray has started is slow to end."""
    for name in before:
        (tmp_path / name / "distillery-ray-7").mkdir(parents=True)
    begun = " && ".join(f"-e n{number}/distillery-ray-7/ray" for number in (1, 2))
    code, _ = run_script("ray.sbatch", tmp_path, f"until [[ {begun} ]]; do sleep 0.1; done", "evaluate")
    assert code == 0
    assert sorted(path.parent.name for path in tmp_path.glob("n?/distillery-ray-7")) == before


def test_a_search_takes_what_the_script_says_of_its_nodes(tmp_path):
    job = f'exec {sys.executable} "$@" --dry-run'
    assert run_script("ray.sbatch", tmp_path, job, *SEARCH, PYTHONPATH=str(ROOT)) == (0, "")


# --- how processes end -------------------------------------------------------------------------

STOPPED_RANK = (
    "import os, pathlib, sys; pathlib.Path(os.environ['DISTILLERY_STOPPED']).touch(); sys.exit({})"
)


@pytest.mark.parametrize(
    ("job", "ended", "told"), [("augment", 0, EXIT_CODE), ("augment", 1, 1), ("evaluate", 0, NOTHING_KEPT)]
)
def test_a_rank_that_fails_is_no_wish_to_stop(monkeypatch, job, ended, told):
    """torchrun asks the other ranks to stop, which they tell by a file, as if the user had."""
    words = [sys.executable, "-c", STOPPED_RANK.format(ended)]
    monkeypatch.setattr(local, "command", lambda *_: words)
    with as_before():
        assert local.run_processes(job, "run", 2) == told


def test_a_rank_that_is_killed_ends_with_a_shells_code(monkeypatch):
    words = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(local, "command", lambda *_: words)
    with as_before():
        assert local.run_processes("augment", "run", 1) == 128 + signal.SIGKILL


def test_processes_of_a_machine_leave_no_files(tmp_path, monkeypatch):
    made = local.command
    monkeypatch.setattr(local, "command", lambda *words: [*made(*words)[:-4], "--no-python", "true"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with as_before():
        assert local.run_processes("augment", "run", 2) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("processes", "default", "said"), [(1, 1, ""), (2, 1, "2"), (4, 4, "4"), (1, 4, "1")]
)
def test_a_run_goes_on_with_as_many_processes(monkeypatch, processes, default, said):
    monkeypatch.setattr(local, "default_processes", lambda: default)
    words = shlex.split(local.resume_command("general", "a b", processes))
    assert words == [
        *["distillery", "general", "--run", "a b", "--resume"],
        *(["--processes", said] if said else []),
    ]
    assert "--processes" not in local.resume_command("pregenerate", "a", processes)


@pytest.mark.parametrize(
    ("job", "how"),
    [
        ("general", "continue from the last checkpoint"),
        ("evaluate", "evaluate keeps nothing on the way; begin anew"),
    ],
)
def test_what_keeps_nothing_is_not_continued(job, how):
    assert local.how_to_resume(job, "a", 1).startswith(f"{how} with: distillery {job} --run a --resume")
