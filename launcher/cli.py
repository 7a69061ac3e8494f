"""The command: `distillery JOB [--config RECIPE] [--setting VALUE ...] [--run FOLDER]`.

Settings are parsed once, here; the run folder keeps them, and every process starts from there.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError

from data_pipeline.settings import PROGRESS, progress_mode
from data_pipeline.untrusted import one_line
from distill.preemption import EXIT_CODE, INTERRUPTED, NOTHING_KEPT
from distill.run_folder import held
from launcher import jobs, local, node, runs, submitted
from launcher.places import place
from launcher.rank import quiet
from launcher.settings import Launch, default_run, given, job_of, option_names, parse, to_yaml
from launcher.wording import meant, plainly

ENDING = 10.0  # seconds for which a run's processes may outlive the command that started them


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 2 for what the user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"distillery {importlib.metadata.version('distillery')}")
        return 0
    name = ""
    try:
        name, rest = _job_and_words(arguments)
        code = run(name, rest)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print(f"distillery {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ArgumentError as error:
        recipes = [value for option, value in given(rest) if option == "config"]
        said = plainly(str(error), " or ".join(recipes)) + meant(str(error), option_names(name))
        return refuse(f"{said}; `distillery {name} --help` explains the settings", name)
    except (ValueError, OSError) as error:
        before, key, said = str(error).partition("Parser key")  # a search parses its candidates
        return refuse(before + plainly(key + said), name)


def usage() -> str:
    """What `distillery --help` prints."""
    listed = "\n".join(f"  {name:<12} {job.help}" for name, job in jobs.JOBS.items())
    return (
        "usage: distillery JOB [--config RECIPE.yaml] [--setting VALUE ...] [--run FOLDER]\n\n"
        f"jobs:\n{listed}\n\n"
        "`distillery JOB --help` explains its settings. Recipes are in recipes/; "
        "`distillery RECIPE.yaml ...` runs the job that one fits, `distillery --version` "
        "says which this is."
    )


def _job_and_words(arguments: list[str]) -> tuple[str, list[str]]:
    """The job that was typed, or whose recipe was, and its arguments. Raises ValueError for neither."""
    if wrong := [word for word in arguments if word.encode(errors="ignore").decode() != word]:
        raise ValueError(f"{wrong[0]!a} is no UTF-8, which a run folder's files are in; give another name")
    name, *rest = node.as_begun(arguments, os.environ)
    if not name.endswith((".yaml", ".yml")):
        if name not in jobs.JOBS:
            raise ValueError(f"{name} is no job; the jobs are {', '.join(jobs.JOBS)}")
        return name, rest
    try:
        job, *rest = node.as_begun([job_of(name), "--config", name, *rest], os.environ)
    except FileNotFoundError:
        instead = f"give a recipe, or one of the jobs {', '.join(jobs.JOBS)}"
        if "--resume" in rest:
            instead = "the run folder keeps its settings: give `distillery JOB --run FOLDER --resume`"
        raise ValueError(f"{name} does not exist; {instead}") from None
    return job, rest


def refuse(message: str, name: str) -> int:
    """Print one line about the user's mistake; returns exit code 2."""
    print(f"distillery {name}".strip() + f": error: {one_line(message)}", file=sys.stderr)
    return 2


def run(name: str, arguments: list[str]) -> int:
    """Run one job. Raises ValueError or ArgumentError before anything is written."""
    job = jobs.JOBS[name]
    config, launch = parse(name, _with_stored_settings(name, arguments))
    setting, _, function = job.instead.partition("=")
    if setting and (value := getattr(config, setting)):
        return jobs.load(function)(value)
    if not job.folder:
        jobs.check(name, config, 1)
        quiet()
        return jobs.load(job.run)(config) or 0
    if launch.on == "node":
        config, launch = node.own_part(config, launch, os.environ)
        config = node.settings(name, config, launch, os.environ)
    if launch.progress != "auto":
        os.environ[PROGRESS] = launch.progress
    progress_mode()  # a wrong mode is refused before anything begins
    processes = _processes_on_each_node(name, config, launch)
    if job.schedules and launch.on in ("local", "node"):
        _refuse_dashboard(name, launch)
    if launch.dry_run:
        print(f"# {launch.run}/config.yaml\n{to_yaml(config)}")
        print(place(launch.on).describe(name, launch, processes))
        return 0
    if (Path(launch.run) / "summary.json").is_file():
        runs.refuse_other_run(Path(launch.run), config, launch.resume)
        print(f"{launch.run} is finished; see {launch.run}/summary.json")
        return 0
    began = _begin(name, config, launch, processes)
    try:
        code = place(launch.on).start(name, launch, processes)
    except ValueError:
        if began:  # else the folder would be in the way of the next attempt
            runs.undo(Path(launch.run))
        raise
    return _finish(code, name, launch)


def _processes_on_each_node(name: str, config: Any, launch: Launch) -> int:
    """How many processes the job has on each node. Raises ValueError for numbers that can't be."""
    for option, least in (("gpus_per_node", 0), ("cpus_per_node", 0), ("max_failures", -1)):
        if (value := getattr(launch, option)) < least:
            raise ValueError(f"--{option.replace('_', '-')}: {value}; give {least} or more")
    job = jobs.JOBS[name]
    processes = place(launch.on).processes(launch) if job.parallel else 1
    if processes < 1 or launch.nodes < 1:
        raise ValueError(f"--processes: {processes}, --nodes: {launch.nodes}; give 1 or more")
    if 0 < launch.gpus_per_node < processes:
        raise ValueError(
            f"--processes: {processes} on {launch.gpus_per_node} GPUs of a node; each needs its own: give "
            f"--processes {launch.gpus_per_node} or fewer"
        )
    takes_nodes = job.parallel or hasattr(config, "slice") or (job.schedules and launch.on == "ray")
    if launch.nodes > 1 and not takes_nodes:
        raise ValueError(f"--nodes: {launch.nodes}; the job {name} runs on one")
    if launch.nodes > 1 and (own := getattr(config, "slice", "1/1")) != "1/1":
        raise ValueError(f"--slice: {own}, and each of {launch.nodes} nodes makes a slice; leave one out")
    if launch.on == "node" and launch.nodes > 1 and not job.parallel:
        raise ValueError(
            f"{name} on {launch.nodes} nodes would do the same on each: give sbatch "
            f"--array=1-{launch.nodes} in place of --nodes={launch.nodes}"
        )
    return processes


def _refuse_dashboard(name: str, launch: Launch) -> None:
    """Refuse $RAY_ADDRESS where it only takes whole jobs, and no workers from here. Raises ValueError."""
    ray = place("ray")
    if ray.submits(launch):
        raise ValueError(
            f"RAY_ADDRESS: {ray.cluster(launch)} is a dashboard's, which no {name} here can join: give "
            "--on ray to submit it there, set the cluster's HOST:PORT, or unset it for one of this machine"
        )


def _begin(name: str, config: Any, launch: Launch, processes: int) -> bool:
    """Refuse what can't work, then begin the run folder; says whether it was new. Raises ValueError."""
    folder = Path(launch.run)
    waits = launch.on == "node" and not node.is_first(os.environ)
    if waits:
        _check(name, config, launch, processes)  # what the first node refuses, it would never begin
        node.wait_for_the_first(folder)
    runs.refuse_other_run(folder, config, launch.resume)
    if launch.on != "node" and (now := _at_work(folder)):
        raise ValueError(f"--run: {folder} is still at work ({now}); distillery cancel {folder} ends it")
    if not waits:
        _check(name, config, launch, processes)
    new = not waits and not (folder / "config.yaml").is_file()
    if new:
        runs.claim(folder, name, config, runs.typed_command())
        return True
    if not waits:
        runs.go_on(folder, config)
    if launch.on == "local":
        with held(folder, ENDING):  # only to refuse a folder in use; the processes hold it later
            pass
    return False


def _check(name: str, config: Any, launch: Launch, processes: int) -> None:
    if not launch.storage:  # with it the files are on the cluster, which checks them
        jobs.check(name, config, processes * launch.nodes if jobs.JOBS[name].parallel else 1)
    engine = getattr(config, "engine", None)
    if launch.on == "local" and engine and engine.precision == "fp16" and not local.may_have_gpu():
        raise ValueError("engine.precision: fp16 needs a GPU and there is none; give bf16, fp32 or auto")


def _at_work(folder: Path) -> str:
    """What its cluster says of a submitted run. Raises ValueError where the cluster can't be asked."""
    try:
        return submitted.state(folder)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"--run: {folder} was submitted, and whether it is still at work can't be told ({error}); "
            f"where its cluster has gone, remove {folder / submitted.RECORD}"
        ) from None


def _with_stored_settings(name: str, arguments: list[str]) -> list[str]:
    """On --resume, begin with the settings that the run folder keeps."""
    if "--resume" not in arguments:
        return arguments
    folder = Path(dict(given(arguments)).get("run", default_run(name)))
    runs.refuse_other_job(folder, name)
    stored = folder / "config.yaml"
    if stored.is_file():
        return ["--config", str(stored), *arguments]
    try:
        parse(name, arguments)
    except ArgumentError as error:
        if "are required" not in str(error):
            raise
        raise ValueError(
            f"--resume: {folder} holds no run, and to start one there is not enough: {error}; give --run "
            "FOLDER of the run to continue"
        ) from None
    return arguments


def _finish(code: int, name: str, launch: Launch) -> int:
    if code == 0 and launch.on == "local":
        print(f"finished: {launch.run}")
    elif code not in (0, 2, INTERRUPTED, EXIT_CODE, NOTHING_KEPT):
        print(f"failed with exit code {code}: {launch.run}; {jobs.again(name)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
