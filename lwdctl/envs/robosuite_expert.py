"""robosuite's scripted operators as `lwdctl collect` asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.records import EnvSpec
from lwdctl.core.seeding import generator
from lwdctl.core.simulator_facts import ROBOSUITE_DEFAULT_MAX_STEPS
from lwdctl.envs.robosuite import RobosuiteSimulator, task_names
from lwdctl.envs.robosuite_operators import OPERATORS, ScriptedOperator
from lwdctl.envs.table import check_tasks

SHORT_NAMES = {"lift": "Lift", "can": "PickPlaceCan"}
# robomimic's limit for data of several operators.
_, MAX_STEPS = ROBOSUITE_DEFAULT_MAX_STEPS
ROBOMIMIC_TYPE = 1
# The controller of robomimic's own data, written as robosuite 1.5 has it.
ARM = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150, "damping_ratio": 1, "impedance_mode": "fixed", "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "input_type": "delta", "input_ref_frame": "base",
    "interpolation": None, "ramp_ratio": 0.2, "gripper": {"type": "GRIP"},
}  # fmt: skip
ENV_KWARGS = {
    "robots": ["Panda"],
    "controller_configs": {"type": "BASIC", "body_parts": {"right": ARM}},
    "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False,
    "camera_depths": False, "use_object_obs": True, "ignore_done": True,
    "reward_shaping": False, "control_freq": 20,
}  # fmt: skip


class RobosuiteExperts:
    """Six operators per task; robomimic's files hold one task."""

    operators = tuple(OPERATORS)
    episodes = 50
    task = "lift"
    packages = ("robosuite", "mujoco")
    several_tasks = False

    def tasks(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return robosuite's names for `lift` and `can`.

        Raises:
            ConfigError: An unknown name.
        """
        known = {**{name.lower(): name for name in task_names()}, **SHORT_NAMES}
        words = [name for name in names if name.lower() not in known]
        check_tasks(words, tuple(SHORT_NAMES), "environment 'robosuite'")
        return tuple(dict.fromkeys(known[name.lower()] for name in names))

    def file_name(self, tasks: Sequence[str]) -> str:
        """Return the task's short name."""
        (task,) = tasks
        return next(short for short, name in SHORT_NAMES.items() if name == task)

    def environment(self, tasks: Sequence[str], max_steps: int) -> EnvSpec:
        """Describe the environment; `ingest` reads all of it but the limit from the file.

        Args:
            tasks: The one task.
            max_steps: Steps after which collecting gives an episode up; 0 means 500. `ingest`
                takes the limit that results on robomimic's data are reported with.
        """
        (task,) = tasks
        args = {
            "env_name": task,
            "env_version": version("robosuite"),
            "type": ROBOMIMIC_TYPE,
            "env_kwargs": ENV_KWARGS,
        }
        return EnvSpec("robosuite", (task,), {"env_args": args}, max_steps or MAX_STEPS)

    def env_args(self, env: EnvSpec) -> dict[str, Any]:
        """Return robomimic's `env_args`."""
        args: dict[str, Any] = dict(env.settings["env_args"])
        return args

    def expert(self, task: str, operator: str, seed: int) -> ScriptedOperator:
        """Return one operator, whose draws are fixed by the episode's seed."""
        return ScriptedOperator(
            OPERATORS[operator], task, generator("operator", task, operator, seed)
        )

    def state(self, simulator: RobosuiteSimulator) -> npt.NDArray[np.float64]:
        """Return time, positions and velocities now, as robomimic's `states` hold them."""
        return simulator.state()

    def scene(self, simulator: RobosuiteSimulator) -> str:
        """Return the scene as robomimic's `model_file` holds it."""
        return simulator.scene()


EXPERTS = RobosuiteExperts()
