"""The table of simulators. A new one is a file of this room and a row here.

The file holds the adapter, a class built as `Adapter(env, task)`, and a function
`task_names()`; the contract tests then run over it unasked. An adapter outside this package
needs no row: its name is `package.module:Class`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import ActionSpec, EnvSpec, SourceSpec
from lwdctl.core.registry import Registry, Row, is_import_path
from lwdctl.core.suggest import did_you_mean
from lwdctl.envs.simulator import Simulator

SIMULATORS = Registry(
    "environment",
    {
        "adroit": Row(
            "lwdctl.envs.adroit:AdroitSimulator",
            "The Adroit hand of gymnasium-robotics: drive a nail in with a hammer",
            extra="adroit",
        ),
        "metaworld": Row(
            "lwdctl.envs.metaworld:MetaworldSimulator", "Metaworld v3, every task by name"
        ),
        "mujoco": Row(
            "lwdctl.envs.gym_mujoco:GymMujocoSimulator",
            "Gymnasium's HalfCheetah, Walker2d, Ant and Hopper, as D4RL's data know them",
        ),
        "pusht": Row("lwdctl.envs.pusht:PushTSimulator", "PushT: push a T-shaped block onto a T"),
        "robosuite": Row(
            "lwdctl.envs.robosuite:RobosuiteSimulator",
            "robosuite's Lift and Can, as robomimic's data know them",
            extra="robosuite",
        ),
    },
    import_paths=True,
)

_CONTRACT = (
    "observations", "action", "metrics", "max_steps",
    "reset", "restore", "initial_state", "step", "perturb", "render", "close",
)  # fmt: skip


def make_simulator(env: EnvSpec, task: str, simulators: Registry = SIMULATORS) -> Simulator:
    """Build the simulator of `env` for one of its tasks.

    Raises:
        ConfigError: The adapter or the task does not exist, or an adapter outside this package
            is none.
        MissingExtraError: The simulator is not installed.
    """
    simulator: Simulator = simulators.load(env.adapter)(env, task)
    missing = [name for name in _CONTRACT if not hasattr(simulator, name)]
    if is_import_path(env.adapter) and missing:
        raise ConfigError(
            f"'{env.adapter}' is no simulator: it has no {', '.join(missing)}",
            "lwdctl.envs.simulator.Simulator says what each is; lwdctl.envs.gymnasium_adapter"
            " wraps a Gymnasium environment",
        )
    return simulator


def with_outside_environment(spec: SourceSpec) -> SourceSpec:
    """Take from an adapter outside this package what no file says of its environment.

    That is what actions mean and how long an episode is; `action` and `max_steps` of the class.

    Raises:
        ConfigError: It cannot be imported, or takes actions of another size.
    """
    adapter = spec.env.adapter
    if not is_import_path(adapter):
        return spec
    simulator = SIMULATORS.load(adapter)
    action: ActionSpec = simulator.action
    if action.size != spec.action.size:
        raise ConfigError(
            f"the data's actions have {spec.action.size} numbers, those of '{adapter}'"
            f" have {action.size}"
        )
    env = replace(spec.env, max_steps=simulator.max_steps)
    return replace(spec, action=action, env=env)


def task_names(adapter: str, simulators: Registry = SIMULATORS) -> tuple[str, ...]:
    """Return every task of an adapter: what `task_names()` in its file returns.

    Raises:
        ConfigError: No adapter has that name.
        MissingExtraError: The simulator is not installed.
    """
    module = importlib.import_module(simulators.load(adapter).__module__)
    names: tuple[str, ...] = module.task_names()
    return names


def check_tasks(names: Sequence[str], known: Sequence[str], what: str = "environment") -> None:
    """Check task names before anything is built.

    Raises:
        ConfigError: A name is not among `known`; the hint names the closest ones.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"the {what} has no task '{name}'", did_you_mean(name, known))
