"""Settings of a job from the command line and YAML, and back to YAML: jsonargparse on dataclasses."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from itertools import takewhile
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_dumper

from launcher.jobs import JOBS, load


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 1e3, which jsonargparse would read as a number and PyYAML would not."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*[eE][-+]?\d+$"), list("-+0123456789")
)
set_dumper("recipe", lambda data: yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


@dataclass
class Launch:
    """Where and how a job runs; not part of its recipe.

    Attributes:
        run: The run folder.
        on: The place.
        processes: Processes on this machine; 0 is one for each GPU, or one.
        resume: Continue the run in the folder, or start it there if it has not begun.
        dry_run: Print what would run, and run nothing.
    """

    run: str
    on: Literal["local"] = "local"
    processes: int = 0
    resume: bool = False
    dry_run: bool = False


def default_run(name: str) -> str:
    """The run folder of a job where none is given."""
    return f"runs/{name}"


class Recipe(ActionConfigFile):
    """A recipe on the command line; what is wrong in it is told with its name."""

    def __call__(self, parser, cfg, values, option_string=None):
        try:
            super().__call__(parser, cfg, values, option_string)
        except (ArgumentError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"--config {values}: {error}; give a YAML file of this job's settings"
            ) from None


def parser(name: str, launch: bool = True) -> ArgumentParser:
    """The command-line parser of a job."""
    job = JOBS[name]
    result = ArgumentParser(
        prog=f"distillery {name}",
        description=job.help,
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
    )
    result.add_argument("--config", action=Recipe, help="A recipe: YAML of the settings.")
    result.add_class_arguments(load(job.config), fail_untyped=True)
    for action in result._actions:  # a bare `--flag` is true, as users expect
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True
    if launch and job.folder:
        place = result.add_argument_group("Where and how it runs")
        place.add_argument("--run", default=default_run(name), help="The run folder.")
        place.add_argument("--on", choices=["local"], default="local", help="The place.")
        if job.parallel:
            place.add_argument(
                "--processes",
                type=int,
                default=0,
                help="Processes on this machine; 0 is one for each GPU, or one.",
            )
        place.add_argument(
            "--resume",
            action="store_true",
            help="Continue the run in the folder, or start it there if it has not begun.",
        )
        place.add_argument("--dry-run", action="store_true", help="Print what would run, and run nothing.")
    return result


def parse(name: str, arguments: list[str]) -> tuple[Any, Launch]:
    """Settings and launch options of a job. Raises ArgumentError on a wrong key or type."""
    command = parser(name)
    words = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    if words and JOBS[name].words:
        arguments = [f"--{JOBS[name].words}", json.dumps(words), *arguments[len(words) :]]
    values = command.parse_args(arguments)
    given = {field.name: values.pop(field.name) for field in fields(Launch) if field.name in values}
    return _build(name, command, values), Launch(**{"run": default_run(name), **given})


def _build(name: str, command: ArgumentParser, values: Namespace) -> Any:
    built = command.instantiate(values)
    config = load(JOBS[name].config)
    return config(**{field.name: built[field.name] for field in fields(config)})


def from_yaml(name: str, text: str) -> Any:
    """Settings of a job from YAML."""
    command = parser(name, launch=False)
    return _build(name, command, command.parse_string(text))


def to_yaml(name: str, config: Any) -> str:
    """Every setting of a job as YAML, a recipe that gives the same settings again."""
    command = parser(name, launch=False)
    values = command.parse_object(asdict(config))
    return command.dump(values, format="recipe", skip_unset=False)
