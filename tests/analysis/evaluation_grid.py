"""Synthetic evaluation artifacts: what an evaluation grid writes, in milliseconds."""

import json

import numpy as np

ENV = "toyland"
SUCCESS_RATES = {"lwd": 0.8, "dp": 0.4, "ldp": 0.6, "random": 0.05}


def episode(index, success, score, task="push", *, demonstration=-1, error="", seed=100_000):
    return {
        "index": index, "seed": seed + index, "task": task, "label": "",
        "demonstration": demonstration, "steps": 30, "success": bool(success),
        "final_success": bool(success), "return": 10.0 * score,
        "metrics": {} if error else {"overlap": float(score), "final_overlap": float(score) / 2},
        "num_replans": 3, "attempts": 1, "error": error, "policy_failure": "",
    }  # fmt: skip


def record(policy, episodes, **protocol):
    """Return one `episodes/*.json` record; only what a reader needs is consistent."""
    counted = [item for item in episodes if not item["error"]]
    values = {
        "latent": "sampled" if policy in {"lwd", "ldp"} else "", "env": ENV, "train_seed": 0,
        "snippet_length": 16, "horizon": 16, "perturbation": 0.0, "sampler": "ddim",
        "num_inference_steps": 10, "seconds": {"total": 0.5 * len(episodes)}, "by_label": {},
        "warm_start": 0.0, "success": None, "success_low": 0.0, "success_high": 1.0,
        "successes": 0, "score": None, "replans_per_episode": 3.0, "cost": {},
    }  # fmt: skip
    cell = {
        "policy": policy, "task": "all", **values, **protocol,
        "episodes": len(counted), "errors": len(episodes) - len(counted),
        "metrics": {"overlap": 0.0, "final_overlap": 0.0, "return": 0.0, "final_success": 0.0},
    }  # fmt: skip
    return {"results": [cell], "episodes": list(episodes)}


def publish(workspace, name, records, inputs=(), **config):
    settings = {"max_steps": 0, "perturbation_probability": 0.1, **config}
    with workspace.begin("evaluation", name, config=settings, inputs=inputs) as draft:
        folder = draft.path / "episodes"
        folder.mkdir()
        for index, item in enumerate(records):
            (folder / f"{item['results'][0]['policy']}-{index}.json").write_text(json.dumps(item))
        cells = [cell for item in records for cell in item["results"]]
        (draft.path / "results.json").write_text(json.dumps(cells))
        return draft.publish({"results": cells}, seed=0)


def outcomes(count, rate, *key):
    rng = np.random.default_rng([count, *key])
    solved = rng.random(count) < rate
    return [episode(i, ok, 1.0 if ok else float(rng.random())) for i, ok in enumerate(solved)]


def grid_records(
    policies=("lwd", "dp"), horizons=(16, 32), perturbations=(0.0, 10.0), seeds=(0,), count=20
):
    """Return one record per result row of the grid; rates fall with horizon and perturbation."""
    records = []
    for p, policy in enumerate(policies):
        for h, horizon in enumerate(horizons):
            for q, perturbation in enumerate(perturbations):
                for seed in seeds:
                    rate = SUCCESS_RATES[policy] - 0.1 * h - 0.1 * q
                    records.append(
                        record(
                            policy,
                            outcomes(count, rate, p, h, q, seed),
                            horizon=horizon,
                            snippet_length=horizon,
                            perturbation=perturbation,
                            train_seed=seed,
                            cost={"flops_per_step": 1e6 * 10 ** (2 * p) / horizon},
                        )
                    )
    return records
