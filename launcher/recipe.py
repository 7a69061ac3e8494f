"""A recipe's file: YAML without what would fill memory or hide a setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_VALUES = 1 << 20  # in a recipe; most characters too


def read_recipe(path: str) -> Any:
    """What a YAML file holds. Raises ValueError where it is none, or has aliases that make it enormous."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        check_yaml(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = str(error).replace('in "<unicode string>", ', "at ")
        how = "put spaces in the tab's place" if r"'\t'" in reason else "give a YAML file"
        raise ValueError(f"{path} is no YAML file of settings ({reason}); {how}") from None


def check_yaml(text: str) -> None:
    """Refuse YAML that would make enormous values, or repeats a name. Raises ValueError."""
    if len(text) > MOST_VALUES or _count(node := yaml.compose(text, yaml.SafeLoader), {}) > MOST_VALUES:
        raise ValueError("it is too large for settings")
    _refuse_repeated(node)


def _count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """The number of values in a node with its aliases expanded. Raises ValueError for a circle."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise ValueError("it holds itself")
        return known[id(node)]
    known[id(node)] = 0  # under way
    if isinstance(node, yaml.MappingNode):
        below = [child for pair in node.value for child in pair]
    else:
        below = node.value if isinstance(node, yaml.SequenceNode) else []
    known[id(node)] = 1 + sum(_count(child, known) for child in below)
    return known[id(node)]


def _refuse_repeated(node: yaml.Node | None) -> None:
    """Raises ValueError for a name that stands twice in a mapping: YAML would take the last."""
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} stands twice in one mapping; leave one out")
        for _, child in node.value:
            _refuse_repeated(child)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_repeated(child)
