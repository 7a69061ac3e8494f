"""The search space: settings that vary, their values, and the configuration that a candidate stands for.

Imports no torch and no Ray.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, TypeGuard, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from distill.settings import TaskDistillConfig

Values = dict[str, Any]  # by setting, such as {"student.layers": 4}
NOT_VARIED = ("record", "task.dev", "task.metric", "task.kind", "task.more_dev")  # trials must compare


@dataclass(frozen=True)
class Domain:
    """The values of one setting: a list, or a range.

    Attributes:
        choices: The list; empty for a range.
        low: Least value of a range.
        high: Greatest.
        log: Whether a range is drawn from log-uniformly.
        when: The setting varies only where each of these has one of the values.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def whole(self) -> bool:
        """Whether a range holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check: all of a list, both ends of a range."""
        return self.choices or (self.low, self.high)

    def draw(self, rng: random.Random) -> Any:
        """One value."""
        if self.choices:
            return rng.choice(self.choices)
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return round(value) if self.whole else value
        return (
            rng.randint(int(self.low), int(self.high)) if self.whole else rng.uniform(self.low, self.high)
        )

    def near(self, value: Any, rng: random.Random) -> Any:
        """A value beside another: 0.8 or 1.2 times as much, or next in the list; once in four any."""
        if rng.random() < 0.25:
            return self.draw(rng)
        if self.choices:
            place = self.choices.index(value) + rng.choice((-1, 1))
            return self.choices[min(max(place, 0), len(self.choices) - 1)]
        near = value * rng.choice((0.8, 1.2))
        return min(self.high, max(self.low, round(near) if self.whole else near))


def read_space(space: dict[str, Any]) -> dict[str, Domain]:
    """The domains by setting, each after those that its condition asks for. Raises ValueError."""
    domains = {key: _domain(key, value) for key, value in space.items()}
    ordered: dict[str, Domain] = {}
    while waiting := {key: domain for key, domain in domains.items() if key not in ordered}:
        ready = {
            key: domain
            for key, domain in waiting.items()
            if not any(other in waiting for other, _ in domain.when)
        }
        if not ready:
            raise ValueError(
                f"space: the conditions of {', '.join(waiting)} wait for one another; remove one"
            )
        ordered |= ready
    return ordered


def _domain(key: str, value: Any) -> Domain:
    """One setting's domain from what the user wrote. Raises ValueError."""
    where = f"space.{key}"
    if not isinstance(value, dict):
        return Domain(choices=_choices(where, value))
    unknown = value.keys() - {"values", "low", "high", "log", "when"}
    if unknown or ("values" in value) == ("low" in value or "high" in value):
        raise ValueError(
            f"{where}: {value}; give a list, {{low: A, high: B}}, or {{values: [...], when: ...}}"
        )
    when = value.get("when", {})
    if not isinstance(when, dict):
        raise ValueError(f"{where}.when: {when}; give {{SETTING: [VALUE, ...]}}")
    conditions = tuple((other, _choices(f"{where}.when.{other}", found)) for other, found in when.items())
    if "values" in value:
        return Domain(choices=_choices(where, value["values"]), when=conditions)
    low, high, log = value.get("low"), value.get("high"), value.get("log", False)
    if not (_is_number(low) and _is_number(high)):
        raise ValueError(f"{where}: low {low} and high {high} must be numbers")
    if not isinstance(log, bool):
        raise ValueError(f"{where}.log: {log!r}; give true or false")
    if not low < high or (log and low <= 0):
        raise ValueError(f"{where}: low {low} must be below high {high}, and above 0 with log")
    return Domain(low=low, high=high, log=log, when=conditions)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _choices(where: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: {value}; give a list of one value or more")
    return tuple(value)


def varies(domain: Domain, chosen: Values, base: TaskDistillConfig) -> bool:
    """Whether a setting's condition holds for what has been chosen so far."""
    return all((chosen.get(other, value_of(base, other))) in found for other, found in domain.when)


def combinations(domains: dict[str, Domain], base: TaskDistillConfig) -> Iterator[Values]:
    """Every combination once, the last setting varying fastest."""
    seen = set()
    for chosen in itertools.product(*(domain.choices for domain in domains.values())):
        values: Values = {}
        for (key, domain), value in zip(domains.items(), chosen, strict=True):
            if varies(domain, values, base):
                values[key] = value
        if (mark := fingerprint(values)) not in seen:
            seen.add(mark)
            yield values


def drawn(domains: dict[str, Domain], base: TaskDistillConfig, seed: int, number: int) -> Values:
    """Draw number `number`: a pure function of its arguments."""
    rng = random.Random(f"{seed}/{number}")
    values: Values = {}
    for key, domain in domains.items():
        if varies(domain, values, base):
            values[key] = domain.draw(rng)
    return values


def fingerprint(values: Values) -> str:
    """A text that is the same for equal values in any order; 1 and 1.0 are equal."""
    return json.dumps(json.loads(json.dumps(values), parse_int=float), sort_keys=True)


def value_of(config: Any, key: str) -> Any:
    """A setting's value in a configuration, `student.layers` say. Raises ValueError where there is none."""
    for name in key.split("."):
        names = [field.name for field in fields(config)] if hasattr(config, "__dataclass_fields__") else []
        if name not in names:
            raise ValueError(f"space.{key}: `distillery task` has no such setting")
        config = getattr(config, name)
    return config


def with_values(base: TaskDistillConfig, values: Values) -> TaskDistillConfig:
    """The configuration that a candidate stands for. Raises ValueError on a wrong type."""
    content = asdict(base)
    for key, value in values.items():
        *path, last = key.split(".")
        value_of(base, key)
        kind, place = type(base), content
        for name in path:
            kind, place = get_type_hints(kind)[name], place[name]
        if value is None and type(None) not in get_args(get_type_hints(kind)[last]):
            raise ValueError(f"space.{key}: null is none of its values; leave it out")
        place[last] = list(value) if isinstance(value, tuple) else value
    try:
        built = _parser().instantiate(_parser().parse_object(content))
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"space: {values}: {error}") from None
    return TaskDistillConfig(**{field.name: built[field.name] for field in fields(TaskDistillConfig)})


@cache
def _parser() -> ArgumentParser:
    """The parser of a candidate's settings; kept, for making it takes longer than using it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TaskDistillConfig, fail_untyped=True)
    return parser


def check_space(space: dict[str, Any], base: TaskDistillConfig) -> None:
    """Refuse settings that do not exist or may not vary, and values of a wrong type."""
    if not space:
        raise ValueError("space: empty; give settings that vary, such as {student.layers: [2, 4]}")
    domains = read_space(space)
    for key, domain in domains.items():
        if key.startswith(NOT_VARIED):
            raise ValueError(f"space.{key}: trials are compared by it; set it in base")
        if hasattr(value_of(base, key), "__dataclass_fields__"):
            raise ValueError(f"space.{key}: a group of settings; name one of them, such as {key}.NAME")
        for other, found in domain.when:
            for value in found:
                with_values(base, {other: value})
            if not _may_be(domains.get(other), value_of(base, other), found):
                raise ValueError(
                    f"space.{key}.when.{other}: {list(found)}, and it is never one of these; give values "
                    "that it has"
                )
        for value in domain.ends:
            with_values(base, {key: value})


def _may_be(domain: Domain | None, own: Any, values: tuple[Any, ...]) -> bool:
    """Whether a setting, which the base sets to `own`, has one of the values in some candidate."""
    if domain is None or (domain.when and own in values):
        return own in values
    if domain.choices:
        return any(value in domain.choices for value in values)
    return any(_is_number(value) and domain.low <= value <= domain.high for value in values)
