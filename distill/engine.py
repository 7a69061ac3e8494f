"""The training engine: DeepSpeed on CPU and GPU alike. With whole_state.py all that knows DeepSpeed."""

from __future__ import annotations

import fcntl
import io
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import xxhash

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # asked for by name, it does not warn

import deepspeed
from deepspeed.comm.torch import build_shm_op
from torch import Tensor, nn
from torch.distributed import register_rendezvous_handler

from distill.encoders import has_bf16_units
from distill.fused import fuse_layer_norms
from distill.optimizers import build_optimizer
from distill.products import speed_up_products
from distill.settings import EngineConfig, OptimizerConfig
from distill.whole_state import WholeState


class Engine:
    """A module under DeepSpeed: forward, backward, step, save and load.

    Args:
        module: What trains; its forward returns a dict with the key `loss`.
        optimizer: The optimizer's settings.
        config: ZeRO stage, precision, micro-batch.
        accumulation: Micro-batches of a step.
        micro_batch_size: Sequences of a micro-batch.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        config: EngineConfig,
        accumulation: int,
        micro_batch_size: int,
    ):
        self.accumulation = accumulation
        precision = precision_name(config.precision, optimizer.name)
        # In fp16 without ZeRO it divides gradients by a scale that it has not multiplied the loss with.
        self.zero = max(config.zero, 1) if precision == "fp16" else config.zero
        fuse_layer_norms(module)
        if self.zero < 3:  # under 3 a layer's weights are whole only while DeepSpeed's own product runs
            speed_up_products(module)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(module, replace(optimizer, lr=0.0)),
            config=deepspeed_config(optimizer, self.zero, precision, accumulation, micro_batch_size),
        )
        if precision == "bf16" and self.zero == 0:
            # It waits for the device at each tensor; the gradient's norm, checked next, tells the same.
            self.optimizer.overflow_checker.has_overflow = lambda *_, **__: False
        # For a single process DeepSpeed's all-reduce would only copy every gradient to and fro.
        self.alone = world_size() == 1 and self.zero == 0 and precision == "fp32"
        if self.alone:
            self.engine.enable_backward_allreduce = False
        # To allocate the moments DeepSpeed has had the optimizer make a step with zero gradients and a
        # learning rate of 0: it changed no weight, but would count for the correction of bias.
        self._whole_state().count_from(0)

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self.engine.module

    @property
    def device(self) -> torch.device:
        """Where the module lies."""
        return torch.device(self.engine.device)

    @property
    def dtype(self) -> torch.dtype:
        """What the module computes in."""
        return next(self.module.parameters()).dtype

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        """The objective's terms for one micro-batch."""
        return self.engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of `loss`, already divided by the global count.

        DeepSpeed averages over processes and micro-batches; the factor turns that into a sum.
        """
        self.engine.backward(loss * (self.accumulation * world_size()))

    def step(self, lr: float) -> None:
        """Call after every micro-batch; the step's last updates the weights, with learning rate `lr`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.alone:  # as the all-reduce does: what had no part in the loss decays all the same
            for parameter in self.module.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        self.engine.step()

    @property
    def overflowed(self) -> bool:
        """Whether DeepSpeed, without a word, left the last update out for a gradient that is not finite, as
        it does under ZeRO and in bf16; the same on all ranks. False in fp16, which so finds its loss scale.
        """
        return not self.engine.fp16_enabled() and getattr(self.optimizer, "overflow", False)

    def train(self) -> None:
        """Dropout on."""
        self.engine.train()

    def eval(self) -> None:
        """Dropout off."""
        self.engine.eval()

    def share_buffers(self) -> None:
        """Give all ranks rank 0's floating-point buffers: running means differ, for each saw other rows."""
        for buffer in self.module.buffers():
            if buffer.is_floating_point():
                from_rank_0(buffer)

    def full_state(self, part: nn.Module) -> dict[str, Tensor]:
        """The whole weights of a part of the module, gathered under ZeRO 3. Every rank calls."""
        parameters = list(part.parameters())
        gathered = deepspeed.zero.GatheredParameters(parameters) if self.zero == 3 else nullcontext()
        with gathered:
            return {
                name: tensor.detach().to("cpu", copy=True) for name, tensor in part.state_dict().items()
            }

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copies of weights and moments, whole, in host memory, and the optimizer's numbers.

        Every rank calls; rank 0 gets the tensors, the others none.
        """
        whole = self._whole_state()
        tensors = {}
        for name, tensor in whole.gather():
            if rank() == 0:
                tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return tensors, whole.numbers()

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Set what `snapshot` gave, with any number of processes and ZeRO stage. Every rank calls.

        Raises ValueError where it is another student's or optimizer's.
        """
        self._whole_state().scatter(tensors, numbers)
        if self.overflowed:  # by the last update before this load
            self.optimizer.overflow = False

    def _whole_state(self) -> WholeState:
        return WholeState(self.module, self.optimizer, self.zero)

    def close(self) -> None:
        """Let go of the module, so that another engine may take it."""
        self.engine.destroy()


def deepspeed_config(
    optimizer: OptimizerConfig, zero: int, precision: str, accumulation: int, micro_batch_size: int
) -> dict[str, Any]:
    """DeepSpeed's own settings for a run."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if optimizer.name == "bert_adam" else optimizer.clip,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "zero_optimization": {"stage": zero},
        "communication_data_type": "fp32",  # sums of many ranks
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def precision_name(precision: str, optimizer: str = "adamw") -> str:
    """The student's precision; `auto` is bf16 on GPUs that multiply it, fp32 elsewhere and with bert_adam.

    Raises ValueError for fp16 on a CPU, which has none.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("engine.precision: fp16 needs a GPU and there is none; give bf16, fp32 or auto")
    if precision != "auto":
        return precision
    has_units = torch.cuda.is_available() and has_bf16_units(torch.device("cuda"))  # others emulate bf16
    return "bf16" if has_units and optimizer != "bert_adam" else "fp32"


def load_communication(root: Path) -> None:
    """Compile and load DeepSpeed's op for sums on a CPU in `root`, one process at a time.

    torch marks a build in progress with a file. A process that is killed in between leaves it, and
    every later one would wait for its removal for ever. Ours take a lock first that ends with its
    holder: who has it knows that a mark is stale. Raises ValueError where `root` can't be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / "lock").open("w")
    except OSError as error:
        raise ValueError(
            f"DeepSpeed compiles in {root}, which can't be written ({error.strerror}); set "
            "TORCH_EXTENSIONS_DIR to a folder that can"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for mark in root.glob("*/lock"):
            mark.unlink()
        build_shm_op()


def extensions_folder(wanted: str | None) -> Path:
    """A folder for compiled extensions that only this Python environment builds in.

    Other programs may use other versions, or build at the same time; and two environments of different
    paths would each take for stale what the other has built.
    """
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    place = xxhash.xxh32_hexdigest(sys.prefix.encode())
    name = f"distillery-{python}-torch{torch.__version__}-{place}"
    root = Path(wanted) if wanted else Path.home() / ".cache" / "torch_extensions"
    return root if root.name == name else root / name


def tools_first(path: str) -> str:
    """PATH with the folder of this Python in front, so that DeepSpeed always finds the same ninja.

    Another version takes what is built for stale, and builds it anew.
    """
    tools = str(Path(sys.executable).parent)
    return path if path.split(os.pathsep)[0] == tools else f"{tools}{os.pathsep}{path}"


LOOPBACK = "127.0.0.1"
PATIENCE = timedelta(minutes=30)  # then a rank that waits for the others gives up


def start_processes(patience: timedelta = PATIENCE) -> torch.device:
    """Join the process group described by the environment (torchrun's); returns this rank's device."""
    root = extensions_folder(os.environ.get("TORCH_EXTENSIONS_DIR"))
    os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
    os.environ["PATH"] = tools_first(os.environ.get("PATH", ""))
    with redirect_stdout(io.StringIO()):  # it prints which extensions it compiled
        load_communication(root)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        # Plain torchrun opens a store for its ranks; our launcher leaves that to them (launcher/local.py).
        has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        opens_store = os.environ.get("MASTER_ADDR") == LOOPBACK and not has_store
        where = "loopback://" if opens_store else None
        deepspeed.init_distributed(dist_backend=backend, timeout=patience, init_method=where)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _meet_on_the_loopback(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[Any, int, int]]:
    """A store for the ranks of this machine that listens on the loopback alone, and who this one is.

    A store that torch opens by itself listens on every address of the machine.
    """
    own, world, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    listens: dict[str, Any] = {}
    if own == 0:
        server = socket.create_server((LOOPBACK, port), backlog=world)
        port = server.getsockname()[1]  # 0 asks for any
        listens = {"is_master": True, "master_listen_fd": server.detach()}
    yield torch.distributed.TCPStore(LOOPBACK, port, world, timeout=timeout, **listens), own, world


register_rendezvous_handler("loopback", _meet_on_the_loopback)


def rank() -> int:
    """This process's number among all."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if world_size() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def from_rank_0(tensor: Tensor) -> Tensor:
    """Rank 0's values of a tensor on every process, in place."""
    if world_size() > 1:
        torch.distributed.broadcast(tensor, 0)
    return tensor


def barrier() -> None:
    """Wait for every process."""
    if world_size() > 1:
        torch.distributed.barrier()
