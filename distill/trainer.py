"""The trainer: one loop for general distillation, task distillation and fine-tuning.

A batch source is a pure function of the step, dropout is seeded by (seed, step, rank), so a run
that was killed continues from a checkpoint exactly as if it had not been.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import get_total_norm

from data_pipeline.outage import Outage
from data_pipeline.progress import Progress
from data_pipeline.untrusted import parse_json
from data_pipeline.whole import beside
from distill.accounting import (
    LONGEST,
    Cost,
    forget_peak_memory,
    forward_cost,
    matrix_ceiling,
    model_cost,
    peak_memory_mb,
    profiled,
)
from distill.agreement import ROUNDING, digest, rows_apart, weights_apart
from distill.checkpoints import Checkpoints
from distill.encoders import BEST, Batch, Signal, StoredTeacher, Teacher
from distill.engine import Engine, barrier, from_rank_0, rank, sum_over_ranks, world_size
from distill.model_facts import positions
from distill.objective import Objective, count
from distill.part_checks import micro_batch_size
from distill.preemption import Stopped, asked
from distill.run_folder import Metrics
from distill.schedule import factor
from distill.settings import EngineConfig, RecordConfig, StageConfig
from distill.trackers import tracking
from distill.watchdog import Watchdog, end_process
from distill.window import Votes, Window

# Told of every measurement on dev, on every rank: the metrics, and the share of the training that is done.
OnMeasure = Callable[[dict[str, float], float], None]


class BatchSource(Protocol):
    """Where micro-batches come from."""

    steps_per_epoch: int
    identity: dict[str, str]  # fingerprints of the data, by part: a run resumed on other data is refused

    def micro_batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a global step."""
        ...


@dataclass
class Trainer:
    """Trains one objective over one source.

    Args:
        name: The stage's name, in metrics and checkpoints.
        objective: Student, projections, terms.
        teacher: The signal's source; None where only labels teach.
        source: Micro-batches as a function of the step.
        stage: Epochs, optimizer, schedule.
        engine_config: DeepSpeed.
        record: Metrics and checkpoints.
        seed: Seed of dropout.
        folder: The run folder.
        evaluate: Measures the student on dev; called on every rank, returns metrics.
        on_best: Saves the student when `evaluate`'s metric `selection` is the best so far.
        best_folder: Where `on_best` saves it.
        selection: Name of that metric.
        head_share: Share of the tokens that the student's head sees.
        on_measure: Told of every measurement, with the share of this stage that is done.
    """

    name: str
    objective: Objective
    teacher: Teacher | StoredTeacher | None
    source: BatchSource
    stage: StageConfig
    engine_config: EngineConfig
    record: RecordConfig
    seed: int
    folder: Path
    evaluate: Callable[[], dict[str, float]] | None = None
    on_best: Callable[[], None] | None = None
    best_folder: Path | None = None
    selection: str = ""
    head_share: float = 1.0
    on_measure: OnMeasure | None = None

    def __post_init__(self) -> None:
        self.total = max(1, round(self.stage.epochs * self.source.steps_per_epoch))
        batch_size = self.stage.batch_size
        micro = micro_batch_size(batch_size, self.engine_config, world_size())
        accumulation = batch_size // (micro * world_size())
        self.engine = Engine(self.objective, self.stage.optimizer, self.engine_config, accumulation, micro)
        self.cost = self._step_cost()
        self.ceiling = self._ceiling()
        forget_peak_memory(self.engine.device)
        self.metrics = Metrics(self.folder)
        place = self.folder / "checkpoints" / self.name
        self.checkpoints = Checkpoints(place, self.record.keep, self.metrics.path)
        self.best: dict[str, float] = {}
        self.skipped: set[int] = set()  # steps that are left out
        self.told_rounding = False
        self.watchdog = Watchdog(
            f"{self.name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}",
            rank(),
            world_size(),
            self.engine_config.patience,
            end_process(self.name, self.folder),
        )

    def fit(self) -> dict[str, float]:
        """Train to the end, from the newest checkpoint if there is one; returns the best metrics.

        Raises Stopped, a checkpoint written, where a signal asked for it.
        """
        start = self._resume()
        if self.engine_config.skip_non_finite and not start:
            self.checkpoints.save(self.engine, 0, self._state())  # what the first steps go back to
        self.engine.train()
        trace = self.folder / f"trace-{self.name}.json"
        trackers = self.record.trackers if rank() == 0 else []
        with (
            tracking(trackers, self.folder, self.name, start) as self.track,
            closing(self.watchdog),
            closing(self.checkpoints),
            Progress(self.name, self.total, start, show=rank() == 0) as progress,
            profiled(self.record.profile if rank() == 0 else 0, trace) as profile_step,
        ):
            while start < self.total:
                try:
                    self._steps(start, progress, profile_step)
                    break
                except _NonFinite as error:
                    start = self._leave_out(error)
        return self.best

    def _steps(self, start: int, progress: Progress, profile_step: Callable[[], object]) -> None:
        """Train from step `start` to the end.

        Raises Stopped where a signal asked for it, _NonFinite for a loss or gradient that is not finite.
        """
        votes, window = Votes(), Window()
        for step in range(start, self.total):
            done, stop = step + 1, False
            if step not in self.skipped:
                terms, sums = self.train_step(step)
                window.add(step, terms, sums)
                if self.engine_config.skip_non_finite or self.engine.overflowed:
                    self._refuse_non_finite(window, done)
                stop = votes.stop(sums[0]) and done < self.total
            profile_step()
            progress.reach(done)

            evaluates = self._is_evaluation(done)
            saves = done % self.record.save_every == 0 or done == self.total or stop

            # once in a while: metrics; before a measurement or checkpoint too, whose time is not the steps'
            if window.steps and (done % self.record.log_every == 0 or evaluates or saves):
                progress.describe(*self._close(window, done))
                window = Window()

            # once in a while: dev. Broken weights are neither measured nor kept.
            if evaluates or saves:
                self.watchdog.rest()
                self._refuse_non_finite(window, done)
                self._refuse_other_weights(done)
                self.engine.share_buffers()
            if evaluates:
                progress.describe(*self._measure(done))

            # once in a while: checkpoint
            if saves:
                last = done == self.total or stop
                self.checkpoints.save(self.engine, done, self._state(), wait=last)
            if evaluates or saves:
                window = Window()
            if stop:
                raise Stopped(f"{self.name}: stopped after step {done} of {self.total}, as asked")

    # ------------------------------------------------------------------------- one step
    def train_step(self, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """One optimizer step; returns the terms (this rank's share), and what was summed over all ranks:
        the votes to stop, the steps taken, the digest of the rows, and the six `Counts`.
        """
        batches = [batch.to(self.engine.device) for batch in self.source.micro_batches(step)]
        self.watchdog.move()
        counts = torch.stack([count(batch, self.stage.objective.normalise) for batch in batches])
        rows = torch.stack([digest(batch) for batch in batches]).sum(dim=0, keepdim=True)
        stop = asked() or self.checkpoints.failed  # the last save, which waits, then raises what failed
        own = [*(counts.new_full((1,), value) for value in (stop, step)), rows, counts.sum(dim=0)]
        sums = sum_over_ranks(torch.cat(own))  # one all-reduce of nine numbers
        divisors = sums[3:].float()
        # Dropout as a function of the step. Python hashes integers alike in every process.
        torch.manual_seed(hash((self.seed, step, rank())))

        lr = self.stage.optimizer.lr * factor(self.stage.schedule, step, self.total)
        totals: dict[str, Tensor] = {}
        for batch in batches:
            self.watchdog.move()
            terms = self.engine.forward(batch, self._signal(batch), divisors)
            self.engine.backward(terms["loss"])
            self.engine.step(lr)  # updates the weights after the last micro-batch
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.detach()
        self.watchdog.move()
        return totals, sums

    # -----------------------------------------------------------------------------------

    def _signal(self, batch: Batch) -> Signal:
        if self.teacher is None:
            return Signal()
        hidden = {teacher for _, teacher in self.objective.hidden_layers}
        attention = {teacher for _, teacher in self.objective.attention_layers}
        return self.teacher.signal(batch, hidden, attention)

    def _live_teacher(self) -> Teacher | None:
        return self.teacher.live if isinstance(self.teacher, StoredTeacher) else self.teacher

    def _step_cost(self) -> Cost:
        """Model FLOPs of a step: the student three times, for backward costs twice what forward does."""
        hidden = bool(self.objective.hidden_layers)
        student = model_cost(self.objective.student, self.head_share, hidden)
        cost = student + Cost(per_token=self.objective.projected_flops)
        if self.teacher is None:
            return cost.times(3)
        if self.head_share < 1 and self.objective.config.logits:
            assert isinstance(self.teacher, Teacher)
            return cost.times(3) + model_cost(self.teacher.model, self.head_share, hidden)
        live = self._live_teacher()
        longest = positions(live.model.config.to_dict()) if live else LONGEST
        return cost.times(3) + forward_cost(self._signal, self.engine.device, longest)

    def _ceiling(self) -> float:
        """FLOP/s of all processes at matrix products, in the teacher's dtype; without one the student's."""
        live = self._live_teacher()
        dtype = live.products if live else self.engine.dtype
        barrier()  # processes that share a machine measure it together
        own = torch.tensor(matrix_ceiling(self.engine.device, dtype), device=self.engine.device)
        return float(sum_over_ranks(own))

    def _refuse_other_rows(self, window: Window) -> None:
        """Raise ValueError where the ranks did not take the steps of the window together."""
        if wrong := rows_apart(window.steps, self.stage.batch_size, *window.rows_and_steps()):
            raise ValueError(f"{self.name}: {wrong}")

    def _refuse_other_weights(self, done: int) -> None:
        """Raise ValueError, on all ranks together, where one has other weights; rounding is told once."""
        if world_size() == 1 or self.engine.zero == 3:  # there no two ranks hold the same weight
            return
        apart = {number: share for number, share in enumerate(weights_apart(self.engine.module)) if share}
        named = ", ".join(f"rank {number} ({share:.2g} of their size)" for number, share in apart.items())
        if not all(share <= ROUNDING for share in apart.values()):  # true of NaN too
            raise Outage(
                f"{self.name}: at step {done} the weights differ from rank 0's on {named}: a processor or "
                "memory fails there, or the gradients are not summed; continue with --resume elsewhere"
            )
        if apart and rank() == 0 and not self.told_rounding:
            self.told_rounding = True
            print(f"warning: {self.name}: the ranks round differently: {named}", file=sys.stderr)

    def _refuse_non_finite(self, window: Window, done: int) -> None:
        """Raise _NonFinite, on all ranks together, where a loss of the window's steps was not finite, or
        the last gradient: the weights' norm then tells.
        """
        norm = get_total_norm([weight.detach() for weight in self.objective.parameters()])
        sums = sum_over_ranks(torch.stack([*window.losses, norm]).float())
        bad = [int(index) for index in (~sums.isfinite()).nonzero()]
        if bad and bad[0] < len(window.steps):
            self._refuse_step(window.steps[bad[0]], f"the loss is {sums[bad[0]].item()}")
        if bad or self.engine.overflowed:
            self._refuse_step(done - 1, "the gradient is not finite")

    def _refuse_step(self, step: int, what: str) -> None:
        """Save this rank's batch of a step and raise _NonFinite."""
        path = self.folder / f"non_finite-{self.name}-step{step + 1}-rank{rank()}.safetensors"
        save_batches(path, self.source.micro_batches(step), step + 1)
        barrier()
        every = path.name.replace(f"rank{rank()}", "rank*")
        raise _NonFinite(f"{what} at step {step + 1}; its batch is in {self.folder / every}", step)

    def _leave_out(self, error: _NonFinite) -> int:
        """Go back to the newest checkpoint, to train on without a step; returns the steps done then.

        Raises ValueError where no more may be left out.
        """
        most = self.engine_config.skip_non_finite
        if len(self.skipped) >= most or error.step in self.skipped:
            others = f" (left out before: {most})" if most else ""
            raise ValueError(
                f"{self.name}: {error}{others}; lower optimizer.lr and start anew, mend the data, or leave "
                f"such steps out by engine.skip_non_finite: --resume --engine.skip_non_finite {most + 10}"
            ) from None
        left_out = {*self.skipped, error.step}
        if rank() == 0:
            print(f"warning: {self.name}: {error}; the step is left out", file=sys.stderr)
        self.checkpoints.finish(self.engine.device)
        start = self._resume()
        self.skipped |= left_out
        return start

    def _close(self, window: Window, done: int) -> tuple[str, dict[str, Any]]:
        """Write the window's line of metrics; returns what to show of it. Raises as `_steps` does."""
        means = window.close(self.cost, self.ceiling)
        self.ceiling = max(self.ceiling, 1e12 * means["tflops_per_s"])
        self._refuse_other_rows(window)
        if not math.isfinite(means["loss"]):
            self._refuse_non_finite(window, done)
        return self._log(done, means), means

    def _log(self, done: int, means: dict[str, Any]) -> str:
        row = {"stage": self.name, "split": "train", **self._position(done), **means}
        if skipped := sum(step < done for step in self.skipped):
            row["skipped"] = skipped
        row["peak_memory_mb"] = round(peak_memory_mb(self.engine.device), 1)
        row["lr"] = self.stage.optimizer.lr * factor(self.stage.schedule, done - 1, self.total)
        self._record(row)
        speed = f"{means['sequences_per_s']:.0f} seq/s  {100 * means['mfu']:.0f} % MFU"
        return f"loss {means['loss']:.4g}  {speed}"

    def _record(self, row: dict[str, Any]) -> None:
        if rank() == 0:
            self.metrics.append(row)
            self.track(row)

    def _position(self, done: int) -> dict[str, float]:
        return {"step": done, "epoch": round(done / self.source.steps_per_epoch, 4)}

    def _is_evaluation(self, done: int) -> bool:
        every = self.stage.evaluate_every or self.source.steps_per_epoch
        return self.evaluate is not None and (done % every == 0 or done == self.total)

    def _measure(self, done: int) -> tuple[str, dict[str, float]]:
        """Measure on dev, save the student where it is the best so far; returns what to show."""
        assert self.evaluate is not None
        self.engine.eval()
        scores = self.evaluate()
        self.engine.train()
        self._record({"stage": self.name, "split": "dev", **self._position(done), **scores})
        better = not self.best or scores[self.selection] > self.best[self.selection]
        if from_rank_0(torch.tensor(float(better), device=self.engine.device)):
            self.best = {**scores, "step": done}
            if self.on_best:
                self.on_best()
        if self.on_measure:
            self.on_measure(scores, done / self.total)
        return "  ".join(f"dev {name} {value:.4f}" for name, value in scores.items()), scores

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights and moments."""
        return {"best": self.best, "skipped": sorted(self.skipped), "data": self.source.identity}

    def _resume(self) -> int:
        """Load the newest checkpoint; returns the steps already done.

        Raises ValueError where it is of other data.
        """
        state: dict[str, Any] = self.checkpoints.load(self.engine) or {"step": 0, "best": {}}
        own = self.source.identity
        began = state.get("data", own)  # checkpoints of earlier releases don't say
        if changed := [name for name in {**began, **own} if began.get(name) != own.get(name)]:
            raise ValueError(
                f"{self.name}: the run began with other data: {', '.join(changed)} changed; give the data "
                "that it began with, or a new --run"
            )
        self.best, self.skipped = self._saved_best(state["best"]), set(state.get("skipped", []))
        if rank() == 0:
            self.metrics.rewind(self.name, state["step"])
            if state["step"]:
                print(f"{self.name}: continues after step {state['step']} of {self.total}", file=sys.stderr)
        return state["step"]

    def _saved_best(self, known: dict[str, float]) -> dict[str, float]:
        """The scores of the student in `best_folder`: a killed run may have saved a better one than that
        which the checkpoint has `known`. Nothing where it is gone. Only rank 0's are used.
        """
        if not known or self.best_folder is None:
            return known
        if not self.best_folder.is_dir():
            return {}
        try:
            best = parse_json((self.best_folder / BEST).read_bytes())
        except (OSError, ValueError):  # an earlier release saved no scores with it
            return known
        return best if best.pop("stage") == self.name else known


class _NonFinite(Exception):
    """A step whose loss or gradient is not finite."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def save_batches(path: Path, batches: list[Batch], step: int) -> None:
    """Write a rank's micro-batches of a step: tensors `NUMBER.PART`, the parts as Batch names them."""
    tensors = {
        f"{number}.{name}": tensor.cpu().contiguous()
        for number, batch in enumerate(batches)
        for name, tensor in batch.parts().items()
    }
    partial = beside(path)
    save_file(tensors, partial, {"step": str(step), "rank": str(rank())})
    os.replace(partial, path)
