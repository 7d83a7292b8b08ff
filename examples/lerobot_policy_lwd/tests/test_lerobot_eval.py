"""`lerobot-eval` in its PushT environment, beside a loop of our own over the same episodes.

`EXPORTED_PUSHT_POLICY` names an exported policy that observes `agent_pos` (2) and
`environment_state` (16).
"""

import json
import os
import subprocess
import sys

import pytest
from lerobot_policy_lwd.__main__ import main

from lwdctl.deploy.runtime import ExportedPolicy

EPISODES, STEPS, SEED = 5, 25, 1000
EXPORTED = os.environ.get("EXPORTED_PUSHT_POLICY", "")
OBSERVED = "environment_state_agent_pos"


def our_rewards():
    """Sum of the rewards of every episode, with the exported policy's `act`."""
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed")
    policy, sums = ExportedPolicy(EXPORTED), []
    for seed in range(SEED, SEED + EPISODES):
        env = gymnasium.make("gym_pusht/PushT-v0", obs_type=OBSERVED, max_episode_steps=STEPS)
        seen, _ = env.reset(seed=seed)
        policy.reset(seed)
        total, over = 0.0, False
        while not over:
            seen, reward, ended, stopped, _ = env.step(policy.act(seen))
            total, over = total + reward, ended or stopped
        sums.append(total)
    return sums


@pytest.mark.skipif(not EXPORTED, reason="EXPORTED_PUSHT_POLICY names no exported policy")
def test_lerobot_eval_runs_the_policy(tmp_path):
    wanted = our_rewards()
    assert len({round(reward, 6) for reward in wanted}) > 1
    made = str(tmp_path / "policy")
    assert main([EXPORTED, made, "--feature", "agent_pos=observation.state"]) == 0
    words = [
        f"--policy.path={made}", "--env.type=pusht", f"--env.obs_type={OBSERVED}",
        f"--env.episode_length={STEPS}", f"--eval.n_episodes={EPISODES}",
        "--eval.batch_size=2", "--eval.use_async_envs=false", f"--seed={SEED}",
        f"--output_dir={tmp_path / 'out'}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "lerobot.scripts.lerobot_eval", *words],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout[-1500:])
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == EPISODES
    (task,) = info["per_task"]
    assert task["metrics"]["sum_rewards"] == pytest.approx(wanted, abs=1e-4)
