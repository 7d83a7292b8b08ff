"""The table of environments: one module and one row each.

The module holds the adapter, a class built as `Adapter(env, task)`, and a function `task_names()`;
the contract tests then run over it. Another package adds a row by the entry point group
`lwdctl.environments`, or its adapter is named as `package.module:Class`. Such an adapter may also
be a function of the same arguments, and what it returns may be a `gymnasium.Env`.
"""

from __future__ import annotations

import importlib
import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from lwdctl.artifacts.manifest import command_line
from lwdctl.core.errors import ConfigError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.records import ActionSpec, EnvSpec, SourceSpec
from lwdctl.core.registry import Registry, Row, is_import_path
from lwdctl.core.suggest import did_you_mean
from lwdctl.core.trust import is_trusted
from lwdctl.envs.simulator import Simulator

if TYPE_CHECKING:
    import gymnasium

_ROWS = {
    "adroit": Row(
        "lwdctl.envs.adroit:AdroitSimulator",
        "The Adroit hand of gymnasium-robotics: drive a nail in with a hammer",
        extra="adroit",
    ),
    "metaworld": Row("lwdctl.envs.metaworld:MetaworldSimulator", "Metaworld v3, every task"),
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
}
ENVIRONMENTS = Registry("environment", _ROWS, import_paths=True, entry_points="lwdctl.environments")

Environment: TypeAlias = "EnvSpec | gymnasium.Env[Any, Any] | Callable[[], Any]"
"""What an environment is built from: a row of the table with its settings, or a factory that
returns a `Simulator` or a `gymnasium.Env`. A `gymnasium.Env` object stands for itself."""

_CONTRACT = (
    "observations", "action", "metrics", "max_steps",
    "reset", "restore", "initial_state", "step", "perturb", "render", "close",
)  # fmt: skip


def allowed(env: EnvSpec) -> EnvSpec:
    """Return an environment that may be imported: of the table, installed, or named by the user.

    Raises:
        ConfigError: A file names a module to import, and the user did not; the hint says how to.
    """
    name = env.adapter
    if not env.stored or not is_import_path(name):
        return env
    if is_trusted(name):
        return replace(env, stored=False)
    module, _, attribute = plain_text(name, 200).partition(":")
    raise ConfigError(
        f"the data name an environment outside of lwdctl: running it would import the module"
        f" '{module}' and call its '{attribute}'",
        _how_to_trust(plain_text(name, 200)),
    )


def _how_to_trust(name: str) -> str:
    command = command_line()
    if command.startswith("lwdctl run "):
        return "if you trust it, name it in the recipe's ingest stage: env = 'MODULE:CLASS/TASK'"
    if command.startswith("lwdctl "):
        return f"if you trust it: {command} --trust {shlex.quote(name)}"
    return f"if you trust it, add trust=[{name!r}]"


def load_environment(env: EnvSpec) -> Any:
    """Import and return what builds an environment: the class, or the function.

    Raises:
        ConfigError: The environment does not exist, or `allowed` refuses it.
        MissingExtraError: The simulator is not installed.
    """
    return ENVIRONMENTS.load(allowed(env).adapter)


def make_simulator(env: Environment, task: str) -> Simulator:
    """Build the simulator of an environment.

    Args:
        env: An `EnvSpec`, a factory, or a `gymnasium.Env`.
        task: One of the tasks of an `EnvSpec`; a factory knows its own.

    Raises:
        ConfigError: The environment or the task does not exist, `allowed` refuses it, or what was
            built is neither a `Simulator` nor a `gymnasium.Env`.
        MissingExtraError: The simulator is not installed.
    """
    import gymnasium

    from lwdctl.envs.gymnasium_adapter import WrappedGymnasium

    if isinstance(env, EnvSpec):
        loaded, name = load_environment(env), env.adapter
        plain = _is_plain(loaded)
        try:
            made = loaded() if plain else loaded(env, task)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # by what was called, not by the call
            call = "without arguments" if plain else "with an EnvSpec and the name of a task"
            raise ConfigError(
                f"'{name}' cannot be called {call}: {error}",
                "build a gymnasium.Env, or a class as lwdctl.envs.simulator.Simulator describes it",
            ) from error
    elif isinstance(env, gymnasium.Env):
        return WrappedGymnasium(env, borrowed=True)
    else:
        made, name = env(), getattr(env, "__name__", repr(env))
    if isinstance(made, gymnasium.Env):
        return WrappedGymnasium(made)
    missing = [name for name in _CONTRACT if not hasattr(made, name)]
    if missing:
        raise ConfigError(
            f"'{name}' is no simulator: it has no {', '.join(missing)}",
            "build a gymnasium.Env, or an object with everything that"
            " lwdctl.envs.simulator.Simulator lists",
        )
    simulator: Simulator = made
    return simulator


def _is_plain(loaded: Any) -> bool:
    """Tell whether an environment knows nothing of tasks.

    So it is with a class of `gymnasium.Env`, and with a function that takes no arguments.
    """
    import gymnasium

    if isinstance(loaded, type):
        return issubclass(loaded, gymnasium.Env)
    if not inspect.isfunction(loaded):
        return False
    return not inspect.signature(loaded, follow_wrapped=False).parameters


def is_own(adapter: str) -> bool:
    """Tell whether an environment is one of lwdctl's own."""
    return adapter in _ROWS


def with_outside_environment(spec: SourceSpec) -> SourceSpec:
    """Check that the environment of data exists; take from a plug-in what no data file says.

    These are the meaning of actions and the episode limit: `action` and `max_steps` of the class,
    or of an instance where the class does not have both.

    Raises:
        ConfigError: No environment has that name, it cannot be imported, or it takes actions of
            another size.
    """
    adapter = spec.env.adapter
    if adapter:
        ENVIRONMENTS.check(adapter)
    if not adapter or is_own(adapter):
        return spec
    env = spec.env
    described = load_environment(env)
    if not env.tasks and (_is_plain(described) or _listed_tasks(adapter)):
        names = task_names(adapter)
        env = replace(env, tasks=names if len(names) == 1 else ())
    if not (hasattr(described, "action") and hasattr(described, "max_steps")):
        described = make_simulator(env, next(iter(env.tasks), ""))
        described.close()
    action: ActionSpec = described.action
    if action.size != spec.action.size:
        raise ConfigError(
            f"the data's actions have {spec.action.size} components, those of '{adapter}'"
            f" have {action.size}",
            "name the environment that the data was recorded in: --env on the command line, env= in"
            " Python and recipes",
        )
    if action.reference not in [item.name for item in spec.observations]:
        action = replace(action, reference="")  # it is not stored
    return replace(spec, action=action, env=replace(env, max_steps=described.max_steps))


def task_names(adapter: str) -> tuple[str, ...]:
    """Return every task of an environment: what `task_names()` of its module returns.

    An environment of another package may leave that out: it takes any task, and where none is
    named, that is its own name.

    Raises:
        ConfigError: No environment has that name.
        MissingExtraError: The simulator is not installed.
    """
    names = _listed_tasks(adapter)
    return tuple(names()) if names else (adapter.rpartition(":")[2],)


def _listed_tasks(adapter: str) -> Any:
    module = importlib.import_module(ENVIRONMENTS.load(adapter).__module__)
    return getattr(module, "task_names", None)


def environment_named(name: str) -> EnvSpec:
    """Return the environment that a name such as `"robosuite/Lift"` or `"pusht"` stands for.

    Args:
        name: `ENVIRONMENT/TASK`, or `ENVIRONMENT` for all of its tasks.

    Raises:
        ConfigError: No environment or no task has that name.
        MissingExtraError: The simulator is not installed.
    """
    adapter, _, task = name.partition("/")
    if task and (is_import_path(adapter) or not _listed_tasks(adapter)):  # it takes any name
        return EnvSpec(adapter, (task,))
    tasks = task_names(adapter)
    check_tasks([task] if task else [], tasks, f"environment '{adapter}'")
    return EnvSpec(adapter, (task,) if task else tasks)


def check_tasks(names: Sequence[str], known: Sequence[str], what: str = "environment") -> None:
    """Check task names before anything is built.

    Raises:
        ConfigError: A name is not among `known`; the hint names the closest ones.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"the {what} has no task '{name}'", did_you_mean(name, known))
