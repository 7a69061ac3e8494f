"""`distillery completion SHELL`: jobs, settings and their values, completed in the user's shell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jsonargparse import ArgumentParser, set_parsing_settings

from launcher.jobs import JOBS
from launcher.settings import parser


@dataclass
class CompletionConfig:
    """Settings of `distillery completion SHELL`.

    Args:
        shell: The shell.
    """

    shell: Literal["bash", "zsh", "tcsh"]


def run(config: CompletionConfig) -> None:
    """Print a script for the shell to read; shtab writes it."""
    set_parsing_settings(add_print_completion_argument=True)
    whole = ArgumentParser(prog="distillery")
    jobs = whole.add_subcommands()
    for name, job in JOBS.items():
        jobs.add_subcommand(name, parser(name), help=job.help)
    whole.parse_args([f"--print_completion=shtab-{config.shell}"])
