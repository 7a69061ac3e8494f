"""Settings of a job from the command line and YAML, and back to YAML: jsonargparse on dataclasses."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from types import FunctionType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from data_pipeline.settings import ProgressMode
from data_pipeline.urls import is_url
from distill.custom import name_of
from launcher.jobs import JOBS, load
from launcher.places import PLACES
from launcher.recipe import check_yaml, read_recipe
from launcher.wording import plainly

IN_ALLOCATION = "DISTILLERY_IN_ALLOCATION"  # an environment variable that slurm/ray.sbatch sets
LABELS = "task.labels"  # how its name ends; a search has it as base.task.labels


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 1e3, which jsonargparse would read as a number and PyYAML would not."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*[eE][-+]?\d+$"), list("-+0123456789")
)


# A class or function of the user's own, given from Python, is its name in a recipe.
_Dumper.add_multi_representer(type, lambda dumper, thing: dumper.represent_str(name_of(thing)))
_Dumper.add_multi_representer(PurePath, lambda dumper, path: dumper.represent_str(str(path)))
_Dumper.add_representer(FunctionType, lambda dumper, thing: dumper.represent_str(name_of(thing)))


@dataclass
class Launch:
    """Where and how a job runs; not part of its recipe. The help of each is in OPTIONS.

    Attributes:
        sbatch: Further options of sbatch, one string each.
    """

    run: str
    on: str = "local"
    nodes: int = 1
    processes: int = 0
    gpus_per_node: int = 0
    cpus_per_node: int = 0
    time: str = ""
    partition: str = ""
    environment: str = ""
    sbatch: list[str] = field(default_factory=list)
    address: str = ""
    storage: str = ""
    max_failures: int = 3
    progress: ProgressMode = "auto"
    resume: bool = False
    dry_run: bool = False


# Options of Launch that only some places read: these places, and what `--help` says.
OPTIONS = {
    "nodes": (("slurm", "ray"), "Nodes; of a pregeneration each makes a slice."),
    "gpus_per_node": (("slurm", "ray"), "GPUs on each node."),
    "cpus_per_node": (
        ("slurm", "ray"),
        "CPUs on each node; 0 is Slurm's default, one for each Ray worker.",
    ),
    "time": (("slurm",), "Time limit, such as 4:00:00; a job that saves on the way is continued."),
    "partition": (("slurm",), "Slurm partition."),
    "environment": (("slurm",), "Bash lines for the nodes; see slurm/environment.example.sh."),
    "sbatch": (
        ("slurm",),
        "Further options of sbatch, one with a comma in quotes: '[--account=me, \"--exclude=n1,n2\"]'.",
    ),
    "address": (("ray",), "The cluster: HOST:PORT to join, http://HOST:8265 to submit; else $RAY_ADDRESS."),
    "storage": (
        ("ray",),
        "Folder of the cluster, or of a bucket (s3://BUCKET/FOLDER), that holds its run folders.",
    ),
    "progress": (
        ("local",),
        "How progress is told: a bar in a terminal and lines elsewhere (auto), lines, json or none.",
    ),
    "max_failures": (("ray",), "How often lost workers are started anew, to continue; -1 is without end."),
}


def default_run(name: str) -> str:
    """The run folder of a job where none is given."""
    return f"runs/{name}"


class Recipe(ActionConfigFile):
    """A recipe on the command line; what is wrong in it is told with its name."""

    def __call__(self, parser, cfg, values, option_string=None):
        if Path(values).is_file():
            if not isinstance(content := read_recipe(values), dict):
                raise ValueError(
                    f"--config {values}: no settings stand there; give a YAML file of NAME: VALUE lines"
                )
            _refuse_null(parser.settings, content, f"--config {values}: ")
        try:
            super().__call__(parser, cfg, values, option_string)
        except (ArgumentError, TypeError, UnicodeDecodeError) as error:
            if values.endswith((".yaml", ".yml")) and not Path(values).exists():
                raise ValueError(
                    f"--config {values} does not exist; give a recipe, or on --resume none: the run folder "
                    "keeps the settings"
                ) from None
            raise ValueError(
                f"--config {values}: {plainly(str(error))}; give a YAML file of this job's settings"
            ) from None


class _Parser(ArgumentParser):
    """A parser that knows the dataclass of its settings."""

    settings: type


def parser(name: str, launch: bool = True) -> ArgumentParser:
    """The command-line parser of a job."""
    job = JOBS[name]
    result = _Parser(
        prog=f"distillery {name}",
        description=job.help,
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
    )
    result.settings = load(job.config)
    result.add_argument("--config", action=Recipe, help="A recipe: YAML of the settings.")
    result.add_class_arguments(result.settings, fail_untyped=True)
    for action in result._actions:  # a bare `--flag` is true, as users expect
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True
    if launch and job.folder:
        place = result.add_argument_group("Where and how it runs")
        place.add_argument("--run", default=default_run(name), help="The run folder.")
        place.add_argument("--on", choices=list(PLACES), default="local", help="The place.")
        if job.parallel:
            place.add_argument(
                "--processes",
                type=int,
                default=0,
                help="Processes on each machine; 0 is one for each GPU, or one.",
            )
        kinds, defaults = get_type_hints(Launch), Launch("")
        for option, (places, text) in OPTIONS.items():
            place.add_argument(
                f"--{option.replace('_', '-')}",
                type=kinds[option],
                default=getattr(defaults, option),
                help=f"{text} (--on {' or '.join(places)})",
            )
        place.add_argument(
            "--resume",
            action="store_true",
            help="Continue the run in the folder, or start it there if it has not begun.",
        )
        place.add_argument("--dry-run", action="store_true", help="Print what would run, and run nothing.")
    return result


def option_names(name: str) -> list[str]:
    """The options of a job, without their dashes."""
    options = parser(name)._option_string_actions
    return [option[2:] for option in options if option.startswith("--") and not option.endswith("+")]


def parse(name: str, arguments: list[str]) -> tuple[Any, Launch]:
    """Settings and launch options of a job. Raises ArgumentError on a wrong key or type."""
    command = parser(name)
    for argument in arguments:
        value = argument.partition("=")[2] if argument.startswith("--") else argument
        if value.startswith("{"):
            with suppress(yaml.YAMLError):  # the parser tells of it
                check_yaml(value)
    arguments = _labels_as_typed(arguments)
    values = command.parse_args(_with_positional(name, command, arguments))
    for flag, value in given(arguments):  # to YAML a comment, so null; but GLUE has a column "#2 String"
        if value.startswith("#") and values.get(flag, "") is None:
            values[flag] = value
    of_launch = {field.name: values.pop(field.name) for field in fields(Launch) if field.name in values}
    launch = Launch(**{"run": default_run(name), **of_launch})
    _refuse_unread(name, launch)
    if is_url(launch.run):  # as a path it would be a folder here
        raise ValueError(f"--run: {launch.run}; give a folder (--on ray takes a bucket as --storage)")
    return _build(name, command, values), launch


def _refuse_null(kind: Any, values: dict[str, Any], at: str) -> None:
    """Refuse null where a value is needed, such as a bare `name:`. Raises ValueError."""
    kinds = get_type_hints(kind)
    for name, value in values.items():
        hint = kinds.get(name, Any)
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        group = next(filter(is_dataclass, options), None)
        if value is None and not {Any, type(None)}.intersection(options):
            what = "settings below it" if group else "a value"
            raise ValueError(f"{at}{name}: nothing stands there; give {what}, or leave the line out")
        if group and isinstance(value, dict):
            _refuse_null(group, value, f"{at}{name}.")


def given(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Names of settings and options on the command line, and their values."""
    for argument, following in pairwise([*arguments, ""]):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            yield flag.removeprefix("--"), value if equals else following


def _labels_as_typed(arguments: list[str]) -> list[str]:
    """Labels such as [0, 1] or [yes, no] as a file has them: YAML takes them for numbers and truths."""
    typed = list(arguments)
    for place, (before, argument) in enumerate(pairwise(["", *arguments])):
        flag, equals, value = argument.partition("=")
        if before.endswith(LABELS):
            flag, equals, value = "", "", argument
        elif not (equals and flag.endswith(LABELS)):
            continue
        with suppress(yaml.YAMLError):
            node = yaml.compose(value, yaml.SafeLoader)
            if isinstance(node, yaml.SequenceNode) and all(
                isinstance(n, yaml.ScalarNode) for n in node.value
            ):
                words = json.dumps([each.value for each in node.value], ensure_ascii=False)
                typed[place] = f"{flag}{equals}{words}"
    return typed


def _with_positional(name: str, command: ArgumentParser, arguments: list[str]) -> list[str]:
    """The arguments, positional ones given to the job's setting for them by its option."""
    setting = JOBS[name].words
    words: list[str] = []
    others: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        bare = not argument.startswith("-") and not _is_value_of(command, before, argument)
        (words if bare else others).append(argument)
    if not setting or not words:
        return arguments
    if get_type_hints(load(JOBS[name].config))[setting] == list[str]:
        return [f"--{setting}", json.dumps(words), *others]
    return [f"--{setting}", words[0], *words[1:], *others]


def _is_value_of(command: ArgumentParser, before: str, word: str) -> bool:
    """Whether a word is the value of the option before it; a flag takes only true and false."""
    action = command._option_string_actions.get(before)
    if action is None:
        return before.startswith("--") and "=" not in before  # an unknown option: the parser tells of it
    return word.lower() in ("true", "false") if action.nargs == "?" else action.nargs != 0


def _refuse_unread(name: str, launch: Launch) -> None:
    """Refuse an option that the place or the job does not read. Raises ValueError."""
    default = Launch(launch.run)
    for option, (places, _) in OPTIONS.items():
        if launch.on not in places and getattr(launch, option) != getattr(default, option):
            flag = option.replace("_", "-")
            raise ValueError(f"--{flag} is for --on {' or '.join(places)}; this is --on {launch.on}")
    if not JOBS[name].schedules or launch.on != "ray":
        return
    # slurm/ray.sbatch tells every job what its nodes have.
    of_nodes = {} if IN_ALLOCATION in os.environ else {"gpus_per_node": "gpus", "cpus_per_node": "cpus"}
    for option, setting in {"max_failures": "retries", **of_nodes}.items():
        if getattr(launch, option) != getattr(default, option):
            flag = option.replace("_", "-")
            raise ValueError(f"--{flag}: {name} starts its workers itself; give --workers.{setting}")


def job_of(recipe: str) -> str:
    """The job that a recipe is for, told by its settings' names. Raises ValueError where none fits."""
    content = read_recipe(recipe)
    if isinstance(content, dict):
        fitting = [
            name
            for name, job in JOBS.items()
            if content.keys() <= {field.name for field in fields(load(job.config))}
        ]
        if len(fitting) == 1:
            return fitting[0]
    raise ValueError(f"{recipe}: its settings are not those of one job; give --config {recipe} to one")


def _build(name: str, command: ArgumentParser, values: Namespace) -> Any:
    for key, value in values.items():
        if isinstance(value, dict):
            values[key] = _with_text_names(key, value)
    built = command.instantiate(values)
    config = load(JOBS[name].config)
    return config(**{field.name: built[field.name] for field in fields(config)})


def _with_text_names(key: str, values: dict[Any, Any]) -> dict[str, Any]:
    """A mapping with its keys as text: YAML reads 2 as a number. Raises ValueError for other kinds."""
    for name in values:
        if not isinstance(name, str) and type(name) is not int:
            raise ValueError(f"{key}: {name!r} is no text to YAML; put the name in quotes")
    return {str(name): value for name, value in values.items()}


def from_yaml(name: str, text: str) -> Any:
    """Settings of a job from YAML."""
    command = parser(name, launch=False)
    return _build(name, command, command.parse_string(text))


def to_yaml(config: Any) -> str:
    """Every setting of a job as YAML, a recipe that gives the same settings again."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
