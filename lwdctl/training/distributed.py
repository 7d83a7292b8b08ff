"""One training in several processes: each computes its rows of the same batches.

The gradients are averaged in one flat tensor between the backward pass and the clipping of their
norm, so that the model, its optimizer and its EMA weights are those of a single process.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from inspect import unwrap
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode

from lwdctl.core.errors import ConfigError, LwdctlError, first_line
from lwdctl.core.launch import Launch, launched
from lwdctl.training.peers import (
    ARRIVAL_SECONDS,
    EXIT_OF_SIGNALS,
    STALLED_SECONDS,
    Peers,
    signal_of,
)

_END_TOGETHER_SECONDS = 5.0
_POLL_SECONDS = 0.0005


class Processes:
    """The processes of a training, from inside of one of them.

    Args:
        launch: This process among them.
        peers: The others.

    Attributes:
        rank: Number of this process.
        size: How many there are.
        leads: Whether this is the one that writes and reports, that of rank 0.
    """

    def __init__(self, launch: Launch, peers: Peers) -> None:
        self.rank, self.size, self.leads = launch.rank, launch.size, launch.rank == 0
        self.peers = peers
        self._names = 0

    def rows(self, batch: int, rank: int | None = None) -> slice:
        """Return the rows of a batch that this process, or that of another rank, computes."""
        rank = self.rank if rank is None else rank
        least, more = divmod(batch, self.size)
        start = rank * least + min(rank, more)
        return slice(start, start + least + (rank < more))

    def describe(self, batch: int) -> str:
        """Say how a batch is divided.

        Raises:
            ConfigError: It has fewer rows than there are processes.
        """
        if batch < self.size:
            raise ConfigError(
                f"a batch of {batch} cannot be divided among {self.size} processes",
                f"use --batch-size {self.size} or more, or fewer processes",
            )
        parts = [self.rows(batch, rank) for rank in range(self.size)]
        rows = sorted({part.stop - part.start for part in parts})
        each = " or ".join(map(str, rows))
        return f"{self.size} processes: batches of {batch} snippets, {each} per process"

    @contextmanager
    def draws(self, batch: int, device: torch.device) -> Iterator[None]:
        """Make the random draws of the loss for all rows of a batch, and use those of this one."""
        with ExitStack() as stack:
            if device.type == "cuda":  # the other kernels of attention draw inside of themselves
                from torch.nn.attention import SDPBackend, sdpa_kernel

                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(OwnRows(self.rows(batch), batch))
            yield

    def average(
        self, parameters: Sequence[Tensor], values: Sequence[Tensor], weight: Tensor
    ) -> list[Tensor]:
        """Replace gradients by their weighted mean over all processes.

        Args:
            parameters: What has gradients.
            values: Scalars to average, too.
            weight: Weight of this process (), such as its number of rows.

        Returns:
            The means of the values.
        """
        chosen = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in chosen if parameter.grad is not None]
        parts = [*gradients, *values, torch.ones((), device=weight.device)]
        flat = torch.cat([part.detach().flatten().float() for part in parts])
        flat.mul_(weight)
        self._sum(flat)
        flat.div_(flat[-1].clamp(min=torch.finfo(flat.dtype).tiny))
        pieces = torch.split(flat, [part.numel() for part in parts])
        for parameter, piece in zip(chosen, pieces, strict=False):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype)
        return [piece.squeeze() for piece in pieces[len(chosen) : -1]]

    def agree(self, *, largest: int, first: Sequence[float]) -> tuple[int, list[float]]:
        """Return the largest of one number of every process, and the numbers of rank 0."""
        own = first if self.leads else [-float("inf")] * len(first)
        numbers = torch.tensor([largest, *own], dtype=torch.float64)
        self._wait(dist.all_reduce(numbers, dist.ReduceOp.MAX, async_op=True))
        return int(numbers[0]), numbers[1:].tolist()

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.agree(largest=0, first=())

    def from_first(self, value: Any) -> Any:
        """Return a JSON-ready value of rank 0 in every process."""
        return json.loads(self._bytes_from_first(json.dumps(value).encode()))

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the named tensors of rank 0 in every process, on the CPU."""
        from safetensors.torch import load, save

        data = b""
        if self.leads:
            data = save({name: each.detach().cpu().contiguous() for name, each in tensors.items()})
        return load(self._bytes_from_first(data))

    def wait_for_device(self, device: torch.device) -> None:
        """Wait until a GPU has done its work, as long as the other processes answer.

        Raises:
            LostProcessError: One has gone; what the GPU computes with it never ends.
        """
        if device.type != "cuda":
            return
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))

        def done(seconds: float) -> bool:
            end = time.monotonic() + seconds
            while not event.query() and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
            finished: bool = event.query()
            return finished

        self.peers.wait(done)

    def check_same(self, what: str, value: Mapping[str, Any]) -> None:
        """Check that all processes were given the same.

        Raises:
            ConfigError: One was not; the message names the first setting that differs.
        """
        own = json.dumps(value, default=str)
        for rank, text in enumerate(self._gather(own)):
            other = json.loads(text)
            for key, mine in json.loads(own).items():
                if other.get(key) != mine:
                    raise ConfigError(
                        f"the processes differ in {what}: {key} is {mine!r} for rank {self.rank}"
                        f" and {other.get(key)!r} for rank {rank}",
                        "start every process with the same command on the same data",
                    )

    def check_device(self, device: torch.device) -> None:
        """Check that no other process computes on the same GPU.

        Raises:
            ConfigError: One does.
        """
        own = ""
        if device.type == "cuda":
            own = str(torch.cuda.get_device_properties(device).uuid)
        found = self._gather(own)
        same = [rank for rank, other in enumerate(found) if other == own]
        if own and len(same) > 1:
            raise ConfigError(
                f"the processes of rank {', '.join(map(str, same))} would share one GPU",
                "start no more processes on a node than it has GPUs: torchrun --nproc-per-node=gpu",
            )

    def check_model(self, model: nn.Module) -> None:
        """Check that no layer computes over the rows of a batch.

        Raises:
            ConfigError: One does.
        """
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
                raise ConfigError(
                    f"{name} is a batch normalization, which needs all rows of a batch",
                    "use nn.GroupNorm or nn.LayerNorm, or train in one process",
                )

    def fail(self, error: BaseException) -> BaseException:
        """Tell the others of the error that ends this process; return the error to raise.

        A process that a launcher ends because another one has gone says which.
        """
        by_signal = signal_of(error)
        other = None if isinstance(error, LwdctlError) else self.peers.noticed()
        if other is not None and not (by_signal and other.exit_code > EXIT_OF_SIGNALS):
            error, by_signal = other, 0
        first = self.peers.end(error, will_say=self.leads or not by_signal)
        if isinstance(error, LwdctlError) and not first:
            error.reported = True
        end = time.monotonic() + _END_TOGETHER_SECONDS
        try:
            # Otherwise the launcher would send a signal to those that are about to end.
            while not self.peers.others_have_ended() and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
        except BaseException:  # noqa: BLE001, S110 - that signal; this process is about to end
            pass
        return error

    def _sum(self, flat: Tensor) -> None:
        """Add up a tensor over all processes, in place; on CUDA without waiting."""
        if flat.device.type == "cuda":
            self.peers.entered += 1
            dist.all_reduce(flat)
        else:
            self._wait(dist.all_reduce(flat, async_op=True))

    def _bytes_from_first(self, data: bytes) -> bytes:
        _, (length,) = self.agree(largest=0, first=[len(data)])
        content = torch.empty(int(length), dtype=torch.uint8)
        if self.leads:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._wait(dist.broadcast(content, 0, async_op=True))
        return content.numpy().tobytes()

    def _gather(self, text: str) -> list[str]:
        self._names += 1
        return self.peers.gather(f"told/{self._names}", text)

    def _wait(self, work: Any) -> None:
        def done(seconds: float) -> bool:
            try:
                work.wait(timedelta(seconds=seconds))
            except RuntimeError as error:
                if work.is_completed():
                    raise self.peers.explain(error) from None
                return False
            return True

        self.peers.wait(done)


def join() -> Processes | None:
    """Meet the other processes of this training; None where there is no other.

    Raises:
        ConfigError: A variable of the launcher is missing, or not all processes arrive.
    """
    launch = launched()
    return None if launch is None else _connect(launch)


@contextmanager
def together() -> Iterator[Processes | None]:
    """Meet the other processes; an error inside the context ends all of them."""
    processes = join()
    try:
        yield processes
    except BaseException as error:
        if processes is None:
            raise
        found = processes.fail(error)
        if found is error:
            raise
        raise found from None


def own_rows(batch: int) -> slice:
    """Return the rows of a batch that this process computes: all, where it is the only one."""
    processes = join()
    return slice(0, batch) if processes is None else processes.rows(batch)


def own_device(device: torch.device) -> torch.device:
    """Return the CUDA device of this process, and make it the current one.

    Raises:
        ConfigError: The launcher does not say which, or several processes would share it.
    """
    launch = launched()
    if launch is None or device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if str(device) == "cuda":
        if launch.local_rank is None:
            raise ConfigError(
                "LOCAL_RANK is not set, so it is not known which GPU this process should use",
                "start the processes with torchrun, which sets it",
            )
        # Some launchers show every process its own GPU alone.
        index = launch.local_rank if count > 1 else 0
    elif launch.local_size != 1:
        raise ConfigError(
            f"{launch.size} processes cannot all use {device}",
            "use --device cuda: each process takes the GPU of its LOCAL_RANK",
        )
    else:
        index = device.index
    if index >= count:
        raise ConfigError(
            f"rank {launch.rank} would use GPU {index}, but this node has {count}",
            "start no more processes on a node than it has GPUs: torchrun --nproc-per-node=gpu",
        )
    torch.cuda.set_device(index)
    return device


@cache
def _connect(launch: Launch) -> Processes:
    from lwdctl import __version__

    # torchrun keeps the store itself, and a new one whenever it starts the processes again.
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            launch.address,
            launch.port,
            launch.size,
            is_master=launch.rank == 0 and not kept,
            timeout=timedelta(seconds=ARRIVAL_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"rank {launch.rank} cannot reach MASTER_ADDR:MASTER_PORT,"
            f" {launch.address}:{launch.port}: {first_line(error)}",
            "check the address that torchrun was given (--rdzv-endpoint) and the firewall",
        ) from error
    peers = Peers(
        launch,
        PrefixStore("lwdctl", store),
        f"lwdctl {__version__}, torch {torch.__version__}",
    )
    peers.meet()
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo",
            store=PrefixStore("torch", store),
            rank=launch.rank,
            world_size=launch.size,
            timeout=timedelta(seconds=2 * STALLED_SECONDS),
        )
    except RuntimeError as error:
        raise ConfigError(
            f"rank {launch.rank} cannot connect to the others: {first_line(error)}",
            "name the network between the nodes (see `ip addr`): export GLOO_SOCKET_IFNAME=eth0",
        ) from error
    atexit.register(_leave, peers)
    return Processes(launch, peers)


def _leave(peers: Peers) -> None:
    peers.stop()
    # Where a process is missing, this would wait for it.
    if peers.problem is None and dist.is_initialized():
        dist.destroy_process_group()


_BY_SIZE = {"normal", "rand", "randn", "randint"}
_IN_PLACE = {"bernoulli_", "exponential_", "normal_", "random_", "uniform_"}
_LIKE = {"rand_like", "randint_like", "randn_like"}


class OwnRows(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes each draw that has a value for every row for the whole batch, and takes its own rows.

    All processes seed their generators alike, so the draws are those of one process that has all
    rows. It sees the operations of torch below autograd and autocast: draws with a generator and
    without one, and those of dropout, also inside of attention. What is drawn counts as one value
    per row where its first axis is as long as the process has rows.

    On CUDA the masks of dropout are other ones than those of a single process, which draws them
    inside of its kernels.

    Args:
        rows: The rows of this process.
        size: Rows of the whole batch.
    """

    def __init__(self, rows: slice, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows, self._own, self._size = rows, rows.stop - rows.start, size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        place = next((index for index, item in enumerate(args) if isinstance(item, list)), None)
        if name in _BY_SIZE and place is not None:  # torch.normal may have tensors instead
            shape = args[place]
            if shape[:1] != [self._own]:
                return func(*args, **kwargs)
            whole = func(*args[:place], [self._size, *shape[1:]], *args[place + 1 :], **kwargs)
            return whole[self._rows]
        if _draws_nothing(name, args, kwargs) or _first_axis(args) != self._own:
            return func(*args, **kwargs)
        return self._draw(func, name, args, kwargs)

    def _draw(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        own = args[0]
        if name in _IN_PLACE:
            whole = self._whole(own)
            func(whole, *args[1:], **kwargs)
            return own.copy_(whole[self._rows])
        if name in _LIKE:
            return func(self._whole(own), *args[1:], **kwargs)[self._rows]
        if name == "native_dropout":
            _, mask = func(self._whole(own), *args[1:], **kwargs)
            mask = mask[self._rows]
            return own * mask * (1.0 / (1.0 - args[1])), mask
        raise LwdctlError(
            f"the model draws random numbers with torch's {name}, which a training in several"
            " processes cannot divide among them",
            "train in one process, without torchrun",
        )

    def _whole(self, own: Tensor) -> Tensor:
        """Return a tensor for the whole batch that lies in memory in the order that this one does.

        The values are drawn in that order.
        """
        shape = (self._size, *own.shape[1:])
        strides = own.stride()
        outer = sorted(range(own.dim()), key=lambda axis: -strides[axis])
        whole = own.new_empty([shape[axis] for axis in outer])
        return whole.permute([outer.index(axis) for axis in range(own.dim())])


# torch wraps the method for its compiler, which the first call would import.
OwnRows.__torch_dispatch__ = unwrap(OwnRows.__torch_dispatch__)  # type: ignore[method-assign]


def _first_axis(args: Any) -> int | None:
    """Return the length of what is drawn: of the first tensor, or a number (`torch.randperm`)."""
    shapes = [item.shape for item in args if isinstance(item, Tensor)]
    if not shapes:
        return next((item for item in args if isinstance(item, int)), None)
    return shapes[0][0] if shapes[0] else None


def _draws_nothing(name: str, args: Any, kwargs: Any) -> bool:
    """Tell whether an operation that can drop values out is called without dropout."""
    if name.startswith("_scaled_dot_product") or name == "_flash_attention_forward":
        given = [item for item in args if isinstance(item, float)]
        dropout: float = kwargs.get("dropout_p", given[0] if given else 0.0)
        return dropout == 0.0
    return name == "native_dropout" and not (args[2] and args[1])
