"""What jsonargparse says of a wrong setting, in words that tell what to give."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

UNION = re.compile(
    r'Parser key "([^"]+)": Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors:'
    r".*Given value: (.*)", re.DOTALL
)  # fmt: skip
WRONG = re.compile(r'Parser key "([^"]+)": Expected an? (.+?)\. Got value: ?(.*)', re.DOTALL)
GROUP = re.compile(r'Parser key "([^"]+)": Unable to load config .*"(.*)"')
WANTED = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'list'>": "a list, '[A, B]'",
    "<class 'dict'>": "names and values, '{NAME: VALUE}', a space after the colon",
}
INSIDE = re.compile(
    r"""Parser key "([^"]+)": .*Problem with given class_path '[\w.]+': (.*?) - Expected a <class 'None"""
)
MISSING = "the following arguments are required: "
TYPED = re.compile(r"unrecognized arguments: --([\w.-]+)")
IN_RECIPE = re.compile(r"(?:Group '(.*)' does not accept o|O)ption '([\w.-]+)'")


def plainly(message: str, recipe: str = "") -> str:
    """jsonargparse's words for a value of a wrong type, or for a name in a recipe, shorter."""
    message = " ".join(message.split())
    if name := _in_recipe(message):
        return f"{recipe}: {name}: no such setting" if recipe else f"{name}: no such setting"
    if found := INSIDE.search(message):
        key, said = found[1], plainly(found[2])
        return (
            f"{MISSING}{key}.{said.removeprefix(MISSING)}" if said.startswith(MISSING) else f"{key}.{said}"
        )
    if found := UNION.search(message):
        return _of_no_type(*found.groups())
    if found := GROUP.search(message):
        key, value = found.groups()
        return f"{key}: {value}; it is a group: give its settings one by one, --{key}.NAME VALUE"
    if not (found := WRONG.search(message)):
        return message
    key, wanted, value = found.groups()
    if wanted == "<class 'str'>":
        return f"{key}: {value} is no text to YAML; put it in quotes"
    choice = wanted.removeprefix("typing.Literal[").removesuffix("]").replace("'", "")
    return f"{key}: {value}; give {WANTED.get(wanted, f'one of {choice}')}"


def _of_no_type(key: str, types: str, value: str) -> str:
    for raw, plain in (
        (r"<class 'NoneType'>", "null"), (r"<class '[\w.]+Config'>", "settings below it"),
        (r"<class '(\w+)'>", r"\1"), (r"typing\.", ""), (r"Literal\[(.*?)\]", r"\1"), ("'", ""),
    ):  # fmt: skip
        types = re.sub(raw, plain, types)
    how = ""
    if "list[str]" in types and not value.startswith("["):
        how = "; give a list, '[A, B]'"
    elif "str" in types:
        how = "; put words such as 0, no and 1.5 in quotes, for YAML takes them for others"
    return f"{key}: {value} is none of {types}{how}"


def meant(message: str, names: Iterable[str]) -> str:
    """Which of the settings `names` one that is none of them may be meant to be; empty if none is near."""
    found = TYPED.search(message)
    if not (typed := found[1] if found else _in_recipe(message)):
        return ""
    typed, ends = _snake(typed), {each: _snake(each).rpartition(".")[2] for each in names}
    end = typed.rpartition(".")[2]
    close = get_close_matches(end, ends.values(), 1, 0.75)  # not whole names, which may share a long path
    near = [each for each in ends if _snake(each).replace(".", "_") == typed.replace(".", "_")]
    near = near or [each for each in ends if close and ends[each] == close[0]]
    return f"; do you mean --{' or --'.join(near[:3])}?" if near else ""


def _snake(name: str) -> str:
    return name.replace("-", "_")


def _in_recipe(message: str) -> str:
    """The name in a recipe that is told to be no setting; empty where the message is of something else."""
    found = IN_RECIPE.search(message)
    return ".".join(filter(None, found.groups())) if found else ""
