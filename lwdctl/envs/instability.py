"""The one error by which an adapter says that the physics came apart."""

from __future__ import annotations

from lwdctl.core.errors import SimulatorError


class UnstablePhysicsError(SimulatorError):
    """The simulated state diverged because of the actions given; a failure of the policy."""
