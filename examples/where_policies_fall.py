"""Does a policy fall because of where it starts? Run it from recorded states of a D4RL file.

    python examples/where_policies_fall.py HalfCheetah-v4 halfcheetah_expert.hdf5 \
        diffusion/halfcheetah expert 0 100

The policy fell if the simulator ended the episode, or if the mean reward of its last 100 steps is
below half of the recorded trajectory's from there on (a positive one). Prints {trajectory: step}.
"""

import sys

import gymnasium
import h5py
import numpy as np

import lwdctl

STEPS, WINDOW = 900, 100
KEYS = "infos/qpos", "infos/qvel", "observations", "rewards"


def rewards_from(env, policy, qpos, qvel, observation):
    """Return the reward (time,) of every step of an episode from a recorded state."""
    env.reset(seed=0)
    env.unwrapped.set_state(qpos, qvel)
    (key,), rewards = policy.source.network_keys, []
    for _ in range(STEPS):
        action = policy.act({key: observation.astype(np.float32)})
        observation, reward, ended, *_ = env.step(np.clip(action, -1.0, 1.0))
        rewards.append(reward)
        if ended:
            break
    return np.array(rewards)


def fell_after(rewards, usual):
    """Return the end of the last window that earned half of what is usual, None without a fall."""
    if len(rewards) < STEPS:
        return len(rewards)
    good = np.convolve(rewards, np.full(WINDOW, 1 / WINDOW), "valid") >= usual / 2
    if good[-1]:
        return None
    return int(np.flatnonzero(good)[-1]) + WINDOW if good.any() else 0


name, path, reference, label, *starts = sys.argv[1:] if len(sys.argv) > 5 else sys.exit(__doc__)
plan = {"horizon": "episode"} if reference.startswith("diffusion") else {}
policy, env = lwdctl.load_policy(reference, **plan), gymnasium.make(name)
with h5py.File(path) as file:
    *states, rewards = (file[key][:] for key in KEYS)
    ends = 1 + np.flatnonzero(file["terminals"][:].squeeze() | file["timeouts"][:].squeeze())
episodes = [(a, b) for a, b in zip([0, *ends], ends) if b - a > max(map(int, starts))]  # noqa: B905
for start in map(int, starts):
    fell = {}
    for number, (first, end) in enumerate(episodes):
        policy.reset(seed=number, task=name, label=label)
        earned = rewards_from(env, policy, *(part[first + start] for part in states))
        fell[number] = fell_after(earned, rewards[first + start : end].mean())
    fallen = {number: step for number, step in fell.items() if step is not None}
    print(f"from step {start}: {len(fell)} episodes, {len(fallen)} fell: {fallen}", flush=True)
