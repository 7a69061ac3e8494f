"""Candidates, one after another: a grid, random draws, or what Optuna makes of the scores so far.

Of a grid and of random draws a candidate's number says which it is, so a restart goes on where it stopped;
Optuna is told again what the earlier candidates scored.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import Any

from tune.record import Trial
from tune.settings import TuneConfig
from tune.space import Domain, Values, combinations, drawn, read_space, varies


class Proposals(ABC):
    """Where candidates come from."""

    @abstractmethod
    def ask(self, number: int) -> Values | None:
        """Candidate `number`, from 0 on; None where there are no more."""

    def tell(self, trial: Trial) -> None:
        """Learn from a candidate that has ended; only Optuna does."""
        return


class Grid(Proposals):
    """Every combination.

    Where trials are stopped early, in an order drawn from the seed: a trial is compared with those before
    it, and while each beats the last, as rates that grow may, none is stopped.
    """

    def __init__(self, config: TuneConfig):
        self.candidates = list(combinations(read_space(config.space), config.base))
        if config.scheduler.name != "none":
            random.Random(config.seed).shuffle(self.candidates)

    def ask(self, number: int) -> Values | None:
        return self.candidates[number] if number < len(self.candidates) else None


class Draws(Proposals):
    """Random ones."""

    def __init__(self, config: TuneConfig):
        self.config, self.domains = config, read_space(config.space)

    def ask(self, number: int) -> Values:
        return drawn(self.domains, self.config.base, self.config.seed, number)


class Optuna(Proposals):
    """A tree-structured Parzen estimator (TPE), or NSGA-II where a cost is minimised too.

    Of a trial that was stopped early the last score counts; one that failed or was refused does not count.

    Args:
        config: The search.
        past: How many candidates earlier processes asked for: the same seed would draw them again.
    """

    def __init__(self, config: TuneConfig, past: int = 0):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.config, self.domains = config, read_space(config.space)
        self.state = optuna.trial.TrialState
        directions: list[Any] = ["maximize"]
        seed = config.seed + past
        few = (config.trials or 0) // 4  # drawn at random, before it learns
        sampler: Any = optuna.samplers.TPESampler(n_startup_trials=min(10, max(3, few)), seed=seed)
        if config.minimise:
            directions.append("minimize")
            sampler = optuna.samplers.NSGAIISampler(population_size=min(50, max(4, few)), seed=seed)
        self.study = optuna.create_study(directions=directions, sampler=sampler)
        self.open: dict[int, Any] = {}

    def ask(self, number: int) -> Values:
        trial = self.open[number] = self.study.ask()
        values: Values = {}
        for key, domain in self.domains.items():
            if varies(domain, values, self.config.base):
                values[key] = _suggest(trial, key, domain)
        return values

    def tell(self, trial: Trial) -> None:
        score, cost = trial.last_score, self.config.minimise
        counts = trial.status in ("finished", "stopped") and score is not None
        results: Any = ([score, trial.shape[cost]] if cost else [score]) if counts else None
        state = self.state.COMPLETE if counts else self.state.FAIL
        if (own := self.open.pop(trial.number, None)) is None:
            own = self._asked_before(trial.values)
        self.study.tell(own, results, state)

    def _asked_before(self, values: Values) -> Any:
        """A candidate of an earlier process as a trial of this one's study."""
        params = {key: _position(self.domains[key], value) for key, value in values.items()}
        self.study.enqueue_trial(params)
        trial = self.study.ask()
        _ = trial.relative_params  # asks the sampler, which then counts it to a generation
        for key in values:
            _suggest(trial, key, self.domains[key])
        return trial


def _suggest(trial: Any, key: str, domain: Domain) -> Any:
    """Of a list Optuna sees the positions, for lists of lists are no choices to it."""
    if domain.choices:
        return domain.choices[trial.suggest_categorical(key, range(len(domain.choices)))]
    if domain.whole:
        return trial.suggest_int(key, int(domain.low), int(domain.high), log=domain.log)
    return trial.suggest_float(key, domain.low, domain.high, log=domain.log)


def _position(domain: Domain, value: Any) -> Any:
    return domain.choices.index(value) if domain.choices else value


def proposals(config: TuneConfig, past: int) -> Proposals:
    """The configuration's way of searching."""
    match config.search:
        case "grid":
            return Grid(config)
        case "random":
            return Draws(config)
        case _:
            return Optuna(config, past)
