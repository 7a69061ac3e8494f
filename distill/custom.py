"""Model classes and loss terms of the user's own, named by where Python finds them: `my_module.MyStudent`.

There is no registry: every process imports the module by its name. Imports no torch itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

Named = str | Callable[..., Any]  # `MODULE.NAME`, or the class or function itself


def name_of(thing: Named) -> str:
    """`MODULE.NAME`. Raises ValueError where no other process could find it by that."""
    if isinstance(thing, str):
        return thing
    module, name = getattr(thing, "__module__", ""), getattr(thing, "__qualname__", "")
    if not name or "<" in name or module == "__main__":
        raise ValueError(
            f"{name or thing!r} can't be imported by a run's processes; write the class or function into a "
            "file my_module.py and import it from there"
        )
    return f"{module}.{name}"


def check_name(setting: str, thing: Named) -> None:
    """Refuse a name whose module Python doesn't find; imports nothing. Raises ValueError."""
    module, _, name = name_of(thing).rpartition(".")
    if not module or not all(part.isidentifier() for part in [*module.split("."), name]):
        raise ValueError(f"{setting}: {thing}; give MODULE.NAME, such as my_module.MyStudent")
    _look_here()
    if importlib.util.find_spec(module.split(".")[0]) is None:
        raise ValueError(
            f"{setting}: no module {module}; start from the folder that holds it, or put that on PYTHONPATH"
        )


def load(setting: str, thing: Named) -> Any:
    """Import a class or function. Raises ValueError where there is none of that name."""
    if not isinstance(thing, str):
        return thing
    check_name(setting, thing)
    module, _, name = thing.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{setting}: {module} can't be imported: {error}") from None
    if not hasattr(found, name):
        raise ValueError(f"{setting}: {module} has no {name}")
    return getattr(found, name)


def _look_here() -> None:
    """Let Python find modules in the current folder too, behind all others: from a script it does not."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
