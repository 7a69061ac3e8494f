"""The same job on a real Ray: on this machine, in a Slurm allocation, and on machines of `ray up`."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from data_pipeline.whole import CHECKSUMS
from tests.cluster.conftest import (
    DISTILLERY,
    NUMBER,
    ROOT,
    SECONDS,
    Slurm,
    assert_continued,
    call,
    curve,
    lines,
    needs,
    wait_until,
)
from tests.helpers import KEYS, BucketServer, tree

pytestmark = pytest.mark.cluster
COMPILED = os.environ.get("TORCH_EXTENSIONS_DIR", f"{Path.home()}/.cache/torch_extensions")
ON_RAY = ("--on=ray", "--processes=2")  # of this machine
AWKWARD = """it's a "run" of $(touch owned) `touch owned`; touch owned & #1"""


def assert_as_undisturbed(run: Path, undisturbed: Path) -> None:
    """The same losses in the same steps, each step once, and the same student byte by byte."""
    assert curve(run) == curve(undisturbed)
    assert tree(run / "student") == tree(undisturbed / "student")


def test_workers_of_ray_on_this_machine_train_as_processes_do(environment, training, undisturbed, tmp_path):
    run = tmp_path / "run"
    quiet = {**environment, "RAY_USAGE_STATS_ENABLED": "0"}
    call(DISTILLERY, *training, *ON_RAY, f"--run={run}", environment=quiet)
    assert_as_undisturbed(run, undisturbed)


def test_what_ranks_refuse_is_tried_once(environment, training, tiny_shards, tmp_path):
    """A damaged shard, which the driver does not read."""
    damaged = shutil.copytree(tiny_shards, tmp_path / "shards")
    for shard in damaged.glob("*.tar"):
        content = bytearray(shard.read_bytes())
        content[600:700] = bytes(100)
        shard.write_bytes(content)
    command = [DISTILLERY, *training, f"--shards={damaged}", *ON_RAY]
    process = started(environment, *command, f"--run={tmp_path / 'run'}")
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, said
    assert len(re.findall(r"world_rank=0\b", said)) == 1
    (line,) = re.findall(r"^distillery general: error: (.*)", said, re.MULTILINE)
    assert re.match(r"shards: \S+ is damaged at byte \d+ \(checksum differs\)", line)


def started(environment: dict[str, str], *command: Any) -> subprocess.Popen:
    """A command in the foreground of a terminal: `Ctrl-C` is then a SIGINT to its group."""
    return subprocess.Popen(
        [str(word) for word in command],
        env={**environment, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the background ignores it
    )


def begun(environment: dict[str, str], training: list[str], run: Path, step: int) -> subprocess.Popen:
    """That training on two workers of this machine's own Ray, past a step."""
    command = [DISTILLERY, *training, *ON_RAY, f"--run={run}"]
    process = started(environment, *command)
    wait_until(lambda: len(lines(run)) >= step, f"step {step}")
    return process


def goes_on(environment: dict[str, str], training: list[str], run: Path) -> None:
    """It continues to its end."""
    call(DISTILLERY, *training, *ON_RAY, f"--run={run}", "--resume", environment=environment)


def test_a_worker_of_ray_that_is_killed_is_started_anew(environment, training, undisturbed, tmp_path):
    run = tmp_path / "run"
    process = begun(environment, training, run, 61)
    (holder,) = re.findall(r"process (\d+) of", (run / "lock").read_text())
    os.kill(int(holder), signal.SIGKILL)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert_as_undisturbed(run, undisturbed)


def test_ctrl_c_has_workers_of_ray_write_a_checkpoint(environment, training, undisturbed, tmp_path):
    run = tmp_path / "run"
    process = begun(environment, training, run, 6)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, said
    assert said.count("Ctrl-C again ends at once") == 1
    assert "the same command with --resume continues" in said
    assert "Traceback" not in said
    done = len(lines(run))
    assert (run / "checkpoints" / "general" / f"step-{done:08d}").is_dir()
    goes_on(environment, training, run)
    assert_as_undisturbed(run, undisturbed)


def test_a_second_ctrl_c_ends_workers_of_ray(environment, training, tmp_path):
    """Where they do not answer the first."""
    run = tmp_path / "run"
    process = begun(environment, training, run, 6)
    (holder,) = re.findall(r"process (\d+) of", (run / "lock").read_text())
    os.kill(int(holder), signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout
    while "Ctrl-C again ends at once" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, said
    assert "interrupted; the same command with --resume continues" in said
    wait_until(lambda: not Path("/proc", holder).exists(), "end of the worker")


@pytest.mark.slow
def test_a_head_that_dies_ends_the_run_which_then_goes_on(environment, training, undisturbed, tmp_path):
    """One line and an exit code, nothing left behind, and --resume loses nothing."""
    run = tmp_path / "run"
    process = begun(environment, training, run, 61)
    ours = psutil.Process(process.pid).children(recursive=True)
    before = lines(run)
    (head,) = [each for each in ours if each.name() == "gcs_server"]
    head.kill()
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, said
    assert "the same command with --resume continues" in said.splitlines()[-1]
    wait_until(lambda: not psutil.wait_procs(ours, timeout=0)[1], "end of what it started")
    goes_on(environment, training, run)
    assert_continued(run, before)
    assert_as_undisturbed(run, undisturbed)


def submitted(slurm: Slurm, training: list[str], run: Path) -> str:
    """Submit slurm/ray.sbatch; returns the job's number."""
    script = ROOT / "slurm" / "ray.sbatch"
    options = ["--parsable", "--nodes=2", "--time=20", f"--output={run.parent}/log.txt"]
    options.append(f"--export=ALL,DISTILLERY_PYTHON={sys.executable}")
    return slurm("sbatch", *options, script, *training, f"--run={run}", folder=run.parent).strip()


def test_a_slurm_allocation_holds_a_ray_cluster(slurm, training, undisturbed, tmp_path):
    """Warned on the way, it saves, goes back into the queue, and continues in a new one."""
    run, log = tmp_path / "a run", tmp_path / "log.txt"
    folders = set(Path("/tmp").glob("distillery-ray-*"))  # which the nodes of the bed share
    job = submitted(slurm, training, run)
    wait_until(lambda: len(lines(run)) > 60, "step 60", log.read_text)
    before = lines(run)
    slurm("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: slurm.state(job) == "COMPLETED", "job COMPLETED", log.read_text)
    assert slurm.restarts(job) == 1
    said = log.read_text(errors="replace")
    assert_continued(run, before)
    assert_as_undisturbed(run, undisturbed)
    assert re.search(r"general: stopped after step \d+ of 200", said)
    assert "finished: " in said
    assert not slurm.processes("ray.scripts.scripts")
    assert set(Path("/tmp").glob("distillery-ray-*")) <= folders
    written = b"".join([*tree(run).values(), said.encode()])
    assert not re.search(rb"\b[0-9a-f]{64}\b", written)  # what a token looks like


def test_a_preempted_ray_cluster_goes_back_into_the_queue(slurm, training, undisturbed, tmp_path):
    """Slurm ends Ray at once; the training continues from its last checkpoint."""
    run, log = tmp_path / "run", tmp_path / "log.txt"
    job = submitted(slurm, training, run)
    wait_until(lambda: len(lines(run)) > 60, "step 60", log.read_text)
    before = lines(run)
    slurm.preempt(tmp_path)
    wait_until(lambda: slurm.state(job) == "COMPLETED", "job COMPLETED", log.read_text)
    assert slurm.restarts(job) == 1
    assert_continued(run, before)
    assert_as_undisturbed(run, undisturbed)


def fetched(server: BucketServer, run: str, folder: Path) -> Path:
    """A run folder as the bucket holds it."""
    server.copy(f"runs/{run}", folder)
    (folder / "student" / CHECKSUMS).unlink(missing_ok=True)  # the bucket's own
    return folder


def assert_tells_no_key(*contents: bytes) -> None:
    for key in KEYS.values():
        assert key.encode() not in b"".join(contents)


def test_a_run_in_a_bucket_is_continued_by_a_machine_that_never_saw_it(
    environment, training, undisturbed, bucket_server, tmp_path
):
    """Stopped by Ctrl-C there, finished here; without --resume it is refused."""
    environment = {**environment, **{name.upper(): key for name, key in KEYS.items()}}
    environment["TORCH_EXTENSIONS_DIR"] = COMPILED
    there, here = ({**environment, "HOME": str(tmp_path / home)} for home in ("there", "here"))
    command = [DISTILLERY, *training, *ON_RAY, f"--storage={bucket_server.url('runs')}"]
    process = started(there, *command, f"--run={tmp_path}/there/{AWKWARD}")
    ours = "there/.cache/distillery/runs/*/run"
    wait_until(lambda: any(len(lines(run)) > 60 for run in tmp_path.glob(ours)), "step 61")
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, said
    assert "the same command with --resume continues" in said
    before = lines(fetched(bucket_server, AWKWARD, tmp_path / "stopped"))
    assert 60 < len(before) < 200
    assert (tmp_path / "stopped" / "checkpoints" / "general" / f"step-{len(before):08d}").is_dir()
    command.append(f"--run={tmp_path}/here/{AWKWARD}")
    refused = subprocess.run(list(map(str, command)), env=here, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "holds another run; give a new folder, or --resume to continue it" in refused.stderr
    said += call(*command, "--resume", environment=here)
    run = fetched(bucket_server, AWKWARD, tmp_path / "finished")
    assert_as_undisturbed(run, undisturbed)
    assert lines(run)[: len(before)] == before
    assert len(json.loads((run / "legs.json").read_text())) == 2
    assert " is finished; see s3://bucket/runs/" in call(*command, "--resume", environment=here)
    folders = [*tree(tmp_path / "there" / AWKWARD).values(), *tree(tmp_path / "here" / AWKWARD).values()]
    assert_tells_no_key(said.encode(), refused.stderr.encode(), *tree(run).values(), *folders)
    assert list(tmp_path.rglob("owned")) == []


class Hosts:
    """Machines reached by ssh: h0 is the user's, h1 the head, h2 a worker. All see the folder `shared`."""

    def __init__(self, script: Path, shared: Path, environment: dict[str, str]):
        net = f"198.19.{100 + NUMBER}"
        self.folder = Path(tempfile.gettempdir()) / f"ssh-hosts-{os.getpid()}"
        bed = {
            "SSH_HOSTS_DIR": str(self.folder),
            "SSH_HOSTS_NAME": f"dh{NUMBER}",
            "SSH_HOSTS_NET": net,
            "PATH": f"{DISTILLERY.parent}:{environment['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_UP_enable_autoscaler_v2": "0",
        }
        self.script, self.shared, self.environment = script, shared, environment | bed
        self.head, self.worker, self.outside = f"{net}.11", f"{net}.12", f"{net}.254"

    def bed(self, *words: str) -> str:
        return call(self.script, *words, environment=self.environment)

    def on(self, host: str, *command: Any) -> str:
        """A command on a machine; returns what it prints."""
        return call(self.script, "exec", host, *command, environment=self.environment, folder=ROOT)

    def cluster(self) -> Path:
        """launcher/cloud/local.yaml for these machines, which have no network to install from."""
        config = yaml.safe_load((ROOT / "launcher" / "cloud" / "local.yaml").read_text())
        config["provider"] |= {"head_ip": self.head, "worker_ips": [self.worker]}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": f"{self.folder}/etc/key"}
        words = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", "RAY_AUTH_MODE")
        values = {word: self.environment[word] for word in words}
        values |= {name.upper(): key for name, key in KEYS.items()}
        exports = [f"export {word}={shlex.quote(value)}" for word, value in values.items()]
        profile = self.shared / "profile"
        profile.write_text("\n".join(exports) + "\n")
        config["setup_commands"] = [f"cp {profile} ~/.profile"]
        path = self.shared / "cluster.yaml"
        path.write_text(yaml.safe_dump(config))
        return path


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory, environment) -> Iterator[Hosts]:
    tools = {"sshd": "openssh-server", "ssh-keygen": "openssh-client", "rsync": "rsync", "ip": "iproute2"}
    script = needs("ssh-hosts-up", tools)
    shared = tmp_path_factory.getbasetemp()
    hosts = Hosts(script, shared, {**environment, "TORCH_EXTENSIONS_DIR": COMPILED})
    keep = {sys.prefix, sys.base_prefix, str(ROOT), str(shared), COMPILED}
    try:
        hosts.bed("up", "-n", "2", *(word for folder in sorted(keep) for word in ("-k", folder)))
        yield hosts
    finally:
        hosts.bed("down")


@pytest.mark.slow
def test_a_cluster_of_ray_up_from_nothing_to_the_student(hosts, training, undisturbed):
    """Up, a job submitted, its worker's machine lost on the way, the student fetched, down."""
    shared = hosts.shared
    with ray_up(hosts) as cluster:
        run, here = shared / "runs" / AWKWARD, shared / "here" / AWKWARD
        address = ["--on=ray", "--address=http://127.0.0.1:8265", "--nodes=2", f"--storage={run.parent}"]
        hosts.on("h0", DISTILLERY, *training, f"--run={here}", *address)
        wait_until(lambda: len(lines(run)) > 120, "step 120")
        assert "RUNNING" in hosts.on("h0", DISTILLERY, "status", here)
        hosts.bed("kill", "h2")
        before = lines(run)
        hosts.bed("start", "h2")
        status = [DISTILLERY, "status", here]
        wait_until((run / "summary.json").is_file, "summary", lambda: hosts.on("h0", *status))
        assert "finished: " in hosts.on("h0", DISTILLERY, "logs", here)
        assert_continued(run, before)
        hosts.on("h0", "ray", "rsync-down", cluster, f"{run.parent}/", f"{shared}/fetched/")
        assert_as_undisturbed(shared / "fetched" / AWKWARD, undisturbed)
        token = hosts.on("h0", "bash", "-c", "cat ~/.ray/auth_token").strip()
        assert token
        assert token.encode() not in b"".join([*tree(run).values(), *tree(here).values()])
        assert list(shared.rglob("owned")) == []
        hosts.on("h0", "ray", "down", "-y", cluster)
        assert "raylet" not in hosts.on("h1", "ps", "-e", "-o", "comm")


@pytest.mark.slow
def test_nodes_that_share_no_folder_go_on_from_the_bucket(hosts, training, undisturbed, tmp_path):
    """The machine of a worker is lost on the way."""
    server = BucketServer(hosts.outside)
    with ray_up(hosts), closing(server):
        here = hosts.shared / "here" / "in a bucket"
        address = ["--on=ray", "--address=http://127.0.0.1:8265", "--nodes=2"]
        command = [DISTILLERY, *training, f"--run={here}", *address, f"--storage={server.url('runs')}"]
        hosts.on("h0", *command)
        status = [DISTILLERY, "status", here]

        def holds(name: str) -> bool:
            return any(name in key for key in server.names(f"runs/{here.name}"))

        wait_until(lambda: holds(f"step-00000050/{CHECKSUMS}"), "step 50", lambda: hosts.on("h0", *status))
        hosts.bed("kill", "h2")
        before = lines(fetched(server, here.name, tmp_path / "killed"))
        assert len(before) < 200
        hosts.bed("start", "h2")
        wait_until(lambda: holds("summary.json"), "summary", lambda: hosts.on("h0", *status))
        said = hosts.on("h0", DISTILLERY, "logs", here)
        assert "general: continues after step" in said
        assert "finished: s3://bucket/runs/in%20a%20bucket" in said
        assert f"finished; see {server.url('runs/in%20a%20bucket')}\n" in hosts.on("h0", *status)
        run = fetched(server, here.name, tmp_path / "finished")
        assert_continued(run, before)
        assert_as_undisturbed(run, undisturbed)
        assert_tells_no_key(said.encode(), *tree(run).values(), *tree(here).values())


@contextmanager
def ray_up(hosts: Hosts) -> Iterator[Path]:
    """A cluster from nothing, its dashboard brought to the user's machine."""
    cluster = hosts.cluster()
    hosts.on("h0", "ray", "get-auth-token", "--generate")
    hosts.on("h0", "ray", "up", "-y", "--no-config-cache", cluster)
    dashboard = subprocess.Popen(
        [hosts.script, "exec", "h0", "ray", "dashboard", "--no-config-cache", cluster],
        env=hosts.environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: answers(hosts, "http://127.0.0.1:8265"), "dashboard")
        yield cluster
    finally:
        dashboard.terminate()


def answers(hosts: Hosts, address: str) -> bool:
    """Whether something listens there on the user's machine."""
    done = subprocess.run(
        [hosts.script, "exec", "h0", "ray", "job", "list", f"--address={address}"],
        env=hosts.environment,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
