"""What does looking up demonstrations reach without a policy? Replay the most similar moment.

    python examples/replay_nearest.py runs snippets/pusht 16 25

Every 16 steps it finds the recorded step whose observation and previous observation are most
similar to those of now, and repeats the actions that followed it. `lwdctl eval --latent nearest`
looks up a latent in the same way and follows its policy. Perturbations here are of 25 pixels.
"""

import sys

import numpy as np

import lwdctl


class Replay:
    """Repeats the recorded actions from the most similar recorded step on."""

    def __init__(self, data, horizon):
        self.keys = [item.name for item in data.store.spec.observations if item.network]
        self.horizon = horizon
        rows = [np.concatenate([e.observations[k] for k in self.keys], axis=1) for e in data]
        before = [np.concatenate([part[:1], part[:-1]]) for part in rows]
        std = np.concatenate(rows).std(axis=0)
        self.std = np.tile(np.where(std < 1e-6, 1, std), 2)
        self.seen = np.concatenate([*map(np.hstack, zip(before, rows, strict=True))]) / self.std
        self.actions = [e.actions for e in data]
        self.place = [(n, t) for n, part in enumerate(rows) for t in range(len(part))]

    def reset(self):
        """Begin an episode."""
        self.before, self.age = None, self.horizon

    def act(self, observation):
        """Return an action (action,)."""
        now = np.concatenate([np.ravel(observation[key]) for key in self.keys])
        if self.age == self.horizon:
            state = np.concatenate([now if self.before is None else self.before, now]) / self.std
            self.episode, self.step = self.place[np.square(self.seen - state).sum(axis=1).argmin()]
            self.age = 0
        actions = self.actions[self.episode]
        action = actions[min(self.step + self.age, len(actions) - 1)]
        self.before, self.age = now, self.age + 1
        return action

    def __deepcopy__(self, memo):
        """Share what was recorded: every environment has a policy of its own."""
        other = object.__new__(Replay)
        other.__dict__.update(self.__dict__)
        return other


if __name__ == "__main__":
    workspace, name, horizon, *magnitude = sys.argv[1:] if len(sys.argv) > 3 else sys.exit(__doc__)
    data = lwdctl.load_dataset(name, workspace=workspace)
    spec = data.store.spec.env
    env = f"{spec.adapter}/{spec.tasks[0]}"
    settings = {"episodes": 50, "seed": 200000, "perturbation": float([*magnitude, 0][0])}
    print(lwdctl.evaluate({"replay": Replay(data, int(horizon))}, env, **settings))
