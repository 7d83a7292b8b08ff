"""Which policy the others are tested against, and at which horizon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lwdctl.analysis.evaluations import Run
from lwdctl.analysis.pairing import Group
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean

METHOD = "lwd"


@dataclass(frozen=True)
class Reference:
    """The reference of a comparison.

    Attributes:
        label: Its label, or "" where nothing is tested.
        policy: Its policy.
        notes: What was chosen for want of a word.
    """

    label: str
    policy: str
    notes: tuple[str, ...] = ()

    def of(self, group: Group, groups: Sequence[Group]) -> list[Group]:
        """Return the groups that `group` is tested against.

        They have its perturbation and its horizon. A policy without a horizon is tested
        against every horizon of the reference; a reference with a single one is taken for
        all. What began from recorded starts is tested only against the reference's policy
        begun from the same.
        """
        if not self.label or self.holds(group):
            return []
        label = self._label_for(group, groups)
        perturbation = group.one.perturbation
        found = [
            other
            for other in groups
            if other.one.label == label != group.one.label
            and other.one.perturbation == perturbation
        ]
        same = [other for other in found if other.one.horizon == group.one.horizon]
        if same or len(found) == 1 or group.one.horizon is None:
            return same or found
        return []

    def holds(self, group: Group) -> bool:
        """Tell whether `group` is the reference itself."""
        return group.one.label == self.label

    def _label_for(self, group: Group, groups: Sequence[Group]) -> str:
        if not group.restores:
            return self.label
        labels = {
            other.one.label
            for other in groups
            if other.restores
            and (other.one.policy, other.one.latent) == (self.policy, group.one.latent)
        }
        return min(labels, default="")


def choose_reference(runs: Sequence[Run], wanted: str = "") -> Reference:
    """Choose the reference: by label, else by policy, else the method if it is there.

    Raises:
        ConfigError: Nothing has the name that was given.
    """
    policies = {run.label: run.policy for run in runs}
    name = wanted or METHOD
    if name in policies:
        return Reference(name, policies[name])
    named = {run.label for run in runs if run.policy == name and run.latent in {"", "sampled"}}
    if not named and wanted:
        raise ConfigError(f"no policy here is called '{wanted}'", did_you_mean(wanted, policies))
    if not named:
        note = "no paired tests: there is no policy 'lwd'; name a reference with --against"
        return Reference("", "", (note,))
    label = min(named)
    if len(named) == 1:
        return Reference(label, name)
    others = ", ".join(sorted(named))
    return Reference(label, name, (f"tested against '{label}'; --against takes any of: {others}",))
