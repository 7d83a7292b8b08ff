"""Six scripted operators of robosuite's Lift and Can: two better, two okay, two worse.

They take the places of the six people of robomimic's multi-human data. An operator is a list of
habits, of skill (speed, aim, pauses, detours, fumbled grasps) and of style (the side from which
the hand comes, one axis at a time, how high things are carried), and `robosuite_pilot` flies
by them.
"""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Operator:
    """How one operator flies the arm.

    Lengths are meters, times control steps (20 a second), speeds shares of the controller's
    limit, rates probabilities. A pair is a range that an episode draws from.

    Attributes:
        name: As robomimic's masks name operators.
        speed: Of the free hand.
        carry_speed: Of the hand that holds something.
        gain: How hard the remaining distance is pursued.
        tremor: Standard deviation of the noise on motions, correlated in time.
        hover: Height over the object from which the hand goes down.
        miss: Standard deviation of the aim across the table at the first grasp.
        grasp: Height of the grasp over the object's middle.
        close_steps: Wait for the fingers.
        turns: Share of the cube's angle that the hand turns to; 0 leaves the hand straight.
        bow: Sideways bow of the way, negative on the other side.
        stepwise: Moves along one axis at a time, as with a keyboard.
        levels: Steps of the speed in each direction, 0 for a smooth hand.
        pause_rate: Pauses begun per step.
        pause_steps: How long one lasts.
        detour_rate: Approaches that first lead elsewhere.
        detour: Standard deviation of that elsewhere.
        doubt_rate: Approaches with the fingers closed too early and opened again.
        fumble_rate: First grasps closed above the object, and done again.
        overshoot: How far the carrying hand goes past its aim.
        carry: How high things are lifted.
        linger_steps: Recorded steps with the task solved.
    """

    name: str
    speed: float
    carry_speed: float
    gain: float
    tremor: float
    hover: Range
    miss: float
    grasp: Range
    close_steps: tuple[int, int]
    turns: float
    bow: float
    stepwise: bool
    levels: int
    pause_rate: float
    pause_steps: tuple[int, int]
    detour_rate: float
    detour: float
    doubt_rate: float
    fumble_rate: float
    overshoot: float
    carry: Range
    linger_steps: tuple[int, int]

    @property
    def level(self) -> str:
        """`"better"`, `"okay"` or `"worse"`."""
        return self.name.partition("_")[0]


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            "better_operator_1", speed=0.95, carry_speed=0.95, gain=1.6, tremor=0.03,
            hover=(0.06, 0.09), miss=0.002, grasp=(-0.004, 0.004), close_steps=(5, 8), turns=1.0,
            bow=0.0, stepwise=False, levels=0, pause_rate=0.0, pause_steps=(1, 2),
            detour_rate=0.0, detour=0.0, doubt_rate=0.0, fumble_rate=0.0, overshoot=0.0,
            carry=(0.08, 0.12), linger_steps=(4, 8),
        ),
        Operator(
            "better_operator_2", speed=0.8, carry_speed=0.75, gain=1.4, tremor=0.05,
            hover=(0.04, 0.07), miss=0.003, grasp=(-0.006, 0.003), close_steps=(6, 9), turns=1.0,
            bow=0.05, stepwise=False, levels=0, pause_rate=0.004, pause_steps=(2, 4),
            detour_rate=0.0, detour=0.0, doubt_rate=0.0, fumble_rate=0.0, overshoot=0.0,
            carry=(0.07, 0.1), linger_steps=(4, 8),
        ),
        Operator(
            "okay_operator_1", speed=0.6, carry_speed=0.6, gain=1.2, tremor=0.09,
            hover=(0.08, 0.12), miss=0.005, grasp=(-0.004, 0.008), close_steps=(7, 12), turns=0.7,
            bow=-0.06, stepwise=False, levels=0, pause_rate=0.01, pause_steps=(3, 8),
            detour_rate=0.25, detour=0.05, doubt_rate=0.05, fumble_rate=0.05, overshoot=0.01,
            carry=(0.09, 0.15), linger_steps=(5, 12),
        ),
        Operator(
            "okay_operator_2", speed=0.7, carry_speed=0.7, gain=1.1, tremor=0.07,
            hover=(0.05, 0.1), miss=0.006, grasp=(-0.008, 0.006), close_steps=(6, 12), turns=1.0,
            bow=0.0, stepwise=True, levels=8, pause_rate=0.008, pause_steps=(3, 7),
            detour_rate=0.2, detour=0.04, doubt_rate=0.05, fumble_rate=0.08, overshoot=0.015,
            carry=(0.08, 0.14), linger_steps=(5, 12),
        ),
        Operator(
            "worse_operator_1", speed=0.4, carry_speed=0.4, gain=1.0, tremor=0.14,
            hover=(0.1, 0.16), miss=0.01, grasp=(-0.006, 0.012), close_steps=(8, 18), turns=0.3,
            bow=0.1, stepwise=False, levels=0, pause_rate=0.02, pause_steps=(5, 15),
            detour_rate=0.6, detour=0.08, doubt_rate=0.15, fumble_rate=0.2, overshoot=0.02,
            carry=(0.1, 0.2), linger_steps=(6, 20),
        ),
        Operator(
            "worse_operator_2", speed=0.85, carry_speed=0.8, gain=1.4, tremor=0.25,
            hover=(0.03, 0.14), miss=0.012, grasp=(-0.01, 0.012), close_steps=(5, 16), turns=0.0,
            bow=-0.08, stepwise=True, levels=4, pause_rate=0.025, pause_steps=(4, 12),
            detour_rate=0.7, detour=0.1, doubt_rate=0.2, fumble_rate=0.3, overshoot=0.03,
            carry=(0.08, 0.2), linger_steps=(6, 20),
        ),
    )
}  # fmt: skip
