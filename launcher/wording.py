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
UNKNOWN = re.compile(r"(?:arguments: --|(?:Group '(.*)' does not accept o|O)ption ')([\w.-]+)")


def plainly(message: str) -> str:
    """jsonargparse's words for a value of a wrong type, shorter; of a number or truth in a text's place."""
    message = " ".join(message.split())
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
    if not (found := UNKNOWN.search(message)):
        return ""
    group, typed = found.groups()
    typed = f"{group}.{typed}" if group else typed
    ends = {each: each.rpartition(".")[2].replace("-", "_") for each in names}
    end = typed.rpartition(".")[2].replace("-", "_")
    near = [each for each in ends if ends[each] == end] or get_close_matches(typed, ends, 1, 0.75)
    if not near and (close := get_close_matches(end, ends.values(), 1, 0.75)):
        near = [each for each in ends if ends[each] == close[0]]
    return f"; do you mean --{' or --'.join(near[:3])}?" if near else ""
