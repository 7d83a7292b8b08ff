"""Memory through which the policy and the worker processes exchange actions and observations."""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

Shape = tuple[int, int, int]


class Exchange:
    """Actions and observations of all environments, in memory that several processes share.

    The memory has no name: nothing remains of it, however the processes end.

    Args:
        shape: Number of environments, components of an action, components of an observation.
        descriptor: File descriptor of the memory, if another process made it.

    Attributes:
        actions: (env, action), environment units.
        observations: (env, obs), all keys side by side.
    """

    def __init__(self, shape: Shape, descriptor: int | None = None) -> None:
        self.shape = shape
        num_envs, action_size, observation_size = shape
        size = max(1, 4 * num_envs * (action_size + observation_size))
        self._descriptor = _unnamed_file(size) if descriptor is None else descriptor
        memory = mmap.mmap(self._descriptor, size)
        values = np.frombuffer(memory, np.float32, num_envs * (action_size + observation_size))
        actions, observations = np.split(values, [num_envs * action_size])
        self.actions = actions.reshape(num_envs, action_size)
        self.observations = observations.reshape(num_envs, observation_size)

    @classmethod
    def received(cls, shape: Shape, connection: Connection[Any, Any]) -> Exchange:
        """Open what another process sends with `send`."""
        exchange = cls(shape, reduction.recv_handle(connection))
        exchange.close()
        return exchange

    def send(self, connection: Connection[Any, Any], process_id: int) -> None:
        """Let the process at the other end of a connection share the memory."""
        reduction.send_handle(connection, self._descriptor, process_id)

    def close(self) -> None:
        """Close the file; the memory stays as long as an array shows it."""
        os.close(self._descriptor)


def _unnamed_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("lwdctl")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor
