"""Videos: what is on them, that they change nothing, and that they fail alone."""

import os
from functools import partial
from itertools import pairwise

import cv2
import gymnasium
import numpy as np
import pytest
from PIL import Image

from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import ActionSpec, EnvSpec
from lwdctl.core.seeding import generator
from lwdctl.core.simulator_facts import PUSHT_ACTION
from lwdctl.evaluation import checks
from lwdctl.evaluation.checks import check_video
from lwdctl.evaluation.episodes import plan_episodes
from lwdctl.evaluation.rollout import rollout
from lwdctl.evaluation.video import (
    PERTURBATION_COLOR,
    REPLAN_COLOR,
    Moment,
    Mp4Writer,
    Recording,
    draw_frame,
    first_episodes,
    pace,
    read_frames,
)
from lwdctl.policies.policy import PolicyCost
from lwdctl.policies.random import RandomPolicy

WIDTH, HEIGHT = 130, 130  # the fake image of 129 x 95, the strip, and what makes both even


@pytest.fixture
def recording(tmp_path):
    return Recording(tmp_path / "videos", "test policy", frozenset([0, 2]))


@pytest.fixture
def planner(feedback_policy):
    class Planner(feedback_policy):
        """Plans anew before every fourth step."""

        def reset(self, episodes):
            super().reset(episodes)
            self.steps = 0

        def act(self, observations, active):
            self.steps += 1
            return super().act(observations, active)

        def cost(self):
            made = np.full(self.num_envs, -(-self.steps // 4), dtype=np.int64)
            return PolicyCost(self.num_replans, num_plans=made)

    return Planner


def decode(path):
    """Return frames (frame, height, width, 3) and frames per second, as OpenCV reads them."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (item := capture.read())[0]:
        frames.append(item[1][:, :, ::-1])
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return np.stack(frames), rate


def near(pixel, color):
    """Whether a decoded pixel is a color; H.264 keeps colors roughly."""
    return np.abs(pixel.astype(int) - color).max() < 60


def has_border(frames):
    return [
        near(frame[45, 1], REPLAN_COLOR) and near(frame[1, 60], REPLAN_COLOR) for frame in frames
    ]


def has_tag(frames):
    return [near(frame[6, 7], PERTURBATION_COLOR) for frame in frames]


def facts(result):
    return (
        result.plan.index, result.steps, result.success, result.final_success, result.return_,
        dict(result.metrics), result.num_replans, result.error, result.policy_failure,
    )  # fmt: skip


def names(recording):
    return sorted(path.name for path in recording.folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_videos_show_their_episodes_and_change_nothing(
    env, feedback_policy, plans_of, recording, workers
):
    def run(recording):
        plans, policy = plans_of("walk", "walk", "short", "walk"), feedback_policy(2)
        common = {"num_envs": 2, "perturbation": 0.3, "workers": workers}
        return rollout(policy, env, plans, recording=recording, **common).episodes

    assert [facts(item) for item in run(recording)] == [facts(item) for item in run(None)]
    assert names(recording) == [f"episode-00{i}.{end}" for i in (0, 2) for end in ("mp4", "png")]
    for path, steps in zip(recording.videos(), (10, 3), strict=True):
        frames, rate = decode(path)
        assert frames.shape == (steps + 1, HEIGHT, WIDTH, 3)
        assert rate == 25
        # The fake simulator's white bar moves on with every step.
        bars = [int(np.argmax(frame[50, :, 0] > 128)) for frame in frames]
        assert bars == pytest.approx([14 + 10 * i for i in range(steps + 1)], abs=2)
        with Image.open(path.with_suffix(".png")) as stills:
            size = stills.size
        assert size == (4 * (WIDTH + 4) + 4, -(-(steps + 1) // 4) * (HEIGHT + 4) + 4)


def test_re_planning_between_two_frames_marks_the_next_one(env, planner, plans_of, tmp_path):
    recording = Recording(tmp_path, "test policy", frozenset([0]), every=3)
    rollout(planner(1), env, plans_of("walk"), num_envs=1, workers=0, recording=recording)
    frames, rate = decode(recording.videos()[0])
    # Steps 0, 3, 6, 9 and the last one, 10; plans begin before steps 1, 5 and 9.
    assert has_border(frames) == [False, False, True, True, False]
    assert not any(has_tag(frames))
    assert rate == pytest.approx(25 / 3, abs=0.01)


@pytest.mark.parametrize("every", [1, 4])
def test_a_perturbation_marks_the_next_frame(env, feedback_policy, plans_of, tmp_path, every):
    (plan,) = plans_of("walk")
    rng = generator("perturbation", plan.task, plan.seed)
    perturbed = []
    for _ in range(10):
        perturbed.append(rng.random() < 0.3)
        if perturbed[-1]:
            rng.normal(size=2)
    recording = Recording(tmp_path, "test policy", frozenset([0]), every=every)
    rollout(
        feedback_policy(1), env, [plan], num_envs=1, workers=0, recording=recording,
        perturbation=0.5, perturbation_probability=0.3,
    )  # fmt: skip
    frames, _ = decode(recording.videos()[0])
    drawn = [0, *range(every, 10, every), 10]
    expected = [any(perturbed[a:b]) for a, b in pairwise(drawn)]
    assert 0 < sum(expected) < len(expected)
    assert has_tag(frames) == [False, *expected]
    assert not any(has_border(frames))


def test_a_video_ends_where_the_policy_fails(env, feedback_policy, plans_of, recording):
    policy = feedback_policy(3, nan_at={100_000: 5})
    plans = plans_of("walk", "walk", "unstable")
    got = rollout(policy, env, plans, num_envs=3, workers=0, recording=recording).episodes
    assert [bool(item.policy_failure) for item in got] == [True, False, True]
    # The start and the steps before the failure.
    assert [len(decode(path)[0]) for path in recording.videos()] == [6, 3]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["dark", "dark-later"])
def test_an_episode_that_cannot_be_drawn_runs_as_ever(
    env, feedback_policy, plans_of, recording, task
):
    plans = plans_of("walk", "walk", task)
    got = rollout(
        feedback_policy(3), env, plans, num_envs=3, workers=1, recording=recording
    ).episodes
    assert [(item.steps, item.error, item.policy_failure) for item in got] == [(10, "", "")] * 3
    assert names(recording) == ["episode-000.mp4", "episode-000.png", "episode-002.txt"]
    assert recording.failures() == {"episode-002": "RuntimeError: the light is off"}


@pytest.mark.slow
def test_a_retried_episode_overwrites_its_video(env, feedback_policy, plans_of, recording):
    plans = plans_of("walk", "walk", "die-once")
    got = rollout(
        feedback_policy(3), env, plans, num_envs=3, workers=2, recording=recording
    ).episodes
    # The first episode shared the worker that died.
    assert [item.attempts for item in got] == [2, 1, 2]
    assert names(recording) == [f"episode-00{i}.{end}" for i in (0, 2) for end in ("mp4", "png")]
    assert [len(decode(path)[0]) for path in recording.videos()] == [11, 11]


@pytest.mark.slow
def test_an_episode_lost_to_its_simulator_has_no_video(env, feedback_policy, plans_of, recording):
    plans = plans_of("walk", "walk", "die")
    got = rollout(
        feedback_policy(3), env, plans, num_envs=3, workers=1, recording=recording
    ).episodes
    assert [bool(item.error) for item in got] == [False, False, True]
    assert names(recording) == ["episode-000.mp4", "episode-000.png"]


def test_the_first_episodes_come_in_turn_over_the_tasks(plans_of):
    plans = plans_of("walk", "walk", "walk", "short", "blink", "blink")
    assert first_episodes(plans, 1) == {0}
    assert first_episodes(plans, 4) == {0, 3, 4, 1}
    assert first_episodes(plans, 99) == set(range(6))


@pytest.mark.parametrize(
    ("rate", "every", "expected"),
    [(10, 0, (1, 10)), (20, 0, (1, 20)), (80, 0, (4, 20)), (0, 0, (1, 25)), (80, 2, (2, 40))],
)
def test_videos_play_in_real_time(rate, every, expected):
    assert pace(rate, every) == expected


def test_an_encoder_that_fails_says_why(tmp_path):
    frame = np.zeros((64, 64, 3), dtype=np.uint8)
    writer = Mp4Writer(tmp_path / "no-such-folder" / "video.mp4", 64, 64, 25.0)
    writer.write(frame)
    with pytest.raises(OSError, match="No such file"):
        writer.close()
    with pytest.raises(OSError, match="ffmpeg failed"):
        read_frames(tmp_path / "video.mp4", [0], 64, 64)


def test_an_encoder_that_dies_ends_the_video_alone(
    env, feedback_policy, plans_of, recording, monkeypatch
):
    write = Mp4Writer.write

    def killing(writer, frame):
        writer._process.kill()
        writer._process.wait()
        write(writer, np.zeros((2000, 2000, 3), dtype=np.uint8))

    monkeypatch.setattr(Mp4Writer, "write", killing)
    plans = plans_of("walk", "walk", "walk")
    got = rollout(
        feedback_policy(3), env, plans, num_envs=3, workers=0, recording=recording
    ).episodes
    assert [(item.steps, item.error) for item in got] == [(10, "")] * 3
    assert names(recording) == ["episode-000.txt", "episode-002.txt"]


def test_the_caption_says_what_the_episode_has_come_to():
    image = np.zeros((96, 480, 3), dtype=np.uint8)
    moments = [
        Moment(1, 9, **news)
        for news in (
            {},
            {"num_plans": 2},
            {"perturbations": 1},
            {"solved": True},
            {"reading": "overlap 0.50"},
        )
    ]
    frames = [draw_frame(image, "lwd sampled · reach", moment, moment) for moment in moments]
    assert len({frame[96:].tobytes() for frame in frames}) == 5
    assert all((frame[:96] == 0).all() for frame in frames)


def test_the_check_selects_a_backend(env, feedback_policy, monkeypatch):
    monkeypatch.setenv(checks.VARIABLE, "")
    monkeypatch.setattr(checks, "backends_to_try", lambda: ("egl", "osmesa"))
    check_video(feedback_policy(1), env, "walk", timeout=30)
    assert os.environ[checks.VARIABLE] == "egl"


@pytest.mark.slow
def test_the_check_says_why_there_is_no_video(env, feedback_policy, monkeypatch):
    monkeypatch.setenv(checks.VARIABLE, "")
    monkeypatch.setattr(checks, "backends_to_try", lambda: ("egl", "osmesa"))
    with pytest.raises(SimulatorError, match=r"=egl: .*light is off.*=osmesa: ") as caught:
        check_video(feedback_policy(1), env, "dark", timeout=30)
    assert caught.value.hint == f"{checks.HINT}; without --video nothing is drawn"
    assert os.environ[checks.VARIABLE] == ""


def test_the_hint_follows_the_cause(monkeypatch):
    monkeypatch.setattr(checks, "backends_to_try", lambda: ("egl", "osmesa"))
    env = partial(gymnasium.make, "Pendulum-v1")  # without a render mode
    action = ActionSpec(1, "absolute", "unknown", (-2.0,), (2.0,))
    with pytest.raises(SimulatorError, match="renders no image") as caught:
        check_video(RandomPolicy(action, 1), env, "any", timeout=60)
    assert caught.value.message.startswith("cannot record videos of task 'any': SimulatorError: <")
    assert caught.value.message.endswith("renders no image")
    hint = 'make it with render_mode="rgb_array"; without --video nothing is drawn'
    assert caught.value.hint == hint


def test_pusht_runs_the_same_with_and_without_a_video(tmp_path):
    env = EnvSpec("pusht", ("push_t",))
    plans = plan_episodes(env, 2)
    recording = Recording(tmp_path, "random", frozenset([0]))
    with_video, without = (
        rollout(
            RandomPolicy(PUSHT_ACTION, 2), env, plans, num_envs=2, workers=0, max_steps=8,
            perturbation=25.0, recording=item,
        ).episodes
        for item in (recording, None)
    )  # fmt: skip
    assert [facts(item) for item in with_video] == [facts(item) for item in without]
    frames, rate = decode(recording.videos()[0])
    assert frames.shape[0] == 9
    assert frames.shape[2] == 680
    assert rate == 10
    assert all((a != b).any() for a, b in pairwise(frames))


@pytest.mark.slow
@pytest.mark.sim
def test_metaworld_runs_the_same_with_and_without_a_video(tmp_path, opengl, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", opengl.get("MUJOCO_GL", ""))
    env = EnvSpec("metaworld", ("reach", "drawer-open"))
    plans = plan_episodes(env, 1)
    from lwdctl.core.simulator_facts import METAWORLD_ACTION as METAWORLD

    recording = Recording(tmp_path, "random", frozenset([0, 1]))
    with_video, without = (
        rollout(
            RandomPolicy(METAWORLD, 2), env, plans, num_envs=2, workers=1, max_steps=10,
            perturbation=0.05, recording=item,
        ).episodes
        for item in (recording, None)
    )  # fmt: skip
    assert [facts(item) for item in with_video] == [facts(item) for item in without]
    reach, drawer = (decode(path)[0] for path in recording.videos())
    assert reach.shape == (4, 544, 480, 3)  # steps 0, 4, 8 and 10
    # Two renderers of one process do not draw each other's scene.
    assert np.abs(reach[0, :480].astype(int) - drawer[0, :480]).mean() > 1
    assert reach[:, :480].std() > 10
