"""What an evaluation runs: every policy with every model, horizon and disturbance asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lwdctl.artifacts.artifact import Artifact
from lwdctl.configs import LINEAGE, METHOD, RANDOM, EvalConfig
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.stages.stage import StageContext


@dataclass(frozen=True)
class Trained:
    """A trained model and what it is run with.

    Attributes:
        artifacts: Kind to artifact; of LWD the chain, as far as it is read, of `random` none.
        horizon: Executed steps between two queries, 0 for the whole episode, None for what
            the model was trained with, or where there are no queries.
    """

    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    horizon: int | None = None

    @property
    def main(self) -> Artifact | None:
        """The artifact that the evaluation is made from."""
        return self._first("diffusion", "baseline", "latents", "vae")

    @property
    def seed(self) -> int | None:
        """Training seed."""
        model = self._first("diffusion", "baseline", "vae")
        return model.manifest.provenance.get("seed") if model else None

    def _first(self, *kinds: str) -> Artifact | None:
        return next((self.artifacts[kind] for kind in kinds if kind in self.artifacts), None)


@dataclass(frozen=True)
class Arm:
    """One policy with one model under one latent source and one disturbance.

    Attributes:
        policy: Name of the policy.
        latent: Where LWD's latents come from, "" for other policies.
        perturbation: Magnitude of disturbances.
        trained: The model.
        name: File and display name, unique in its evaluation.
    """

    policy: str
    latent: str
    perturbation: float
    trained: Trained
    name: str


def make_arms(
    config: EvalConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> list[Arm]:
    """List what is to run, in the order of the options.

    One horizon and no `--seeds` takes the given models. Otherwise every horizon and training
    seed has a model of its own, found by its lineage: made from the same snippets, trained
    with that snippet length and seed; the newest, or the last of `context.among`. The training
    seeds of one policy and horizon agree in all settings but the seed: in those of the model that
    is read, where it fits (the newest chain's, or the one that was named), else of the first found.

    Raises:
        ConfigError: A model is missing; the message names every one, the hint a command.
    """
    finder = _Finder(config, inputs, context)
    arms = []
    for policy in dict.fromkeys(config.policy):
        latents = tuple(dict.fromkeys(config.latent)) if policy == METHOD else ("",)
        for trained in finder.models(policy):
            arms += [
                Arm(policy, latent, magnitude, trained, "")
                for latent in latents
                for magnitude in dict.fromkeys(config.perturbation)
            ]
    finder.refuse_missing()
    return [_named(arm, config) for arm in arms]


def models_used(arms: Sequence[Arm], inputs: Mapping[str, Artifact]) -> list[Artifact]:
    """Return what an evaluation is made from: its models, else the last of its inputs."""
    mains = [arm.trained.main for arm in arms if arm.trained.main]
    return list({main.path: main for main in mains}.values()) or list(inputs.values())[-1:]


def _named(arm: Arm, config: EvalConfig) -> Arm:
    parts = [arm.policy, arm.latent]
    if len(config.horizon) > 1 and arm.trained.horizon is not None:
        parts.append(f"h{arm.trained.horizon or 'episode'}")
    if len(set(config.perturbation)) > 1:
        parts.append(f"p{arm.perturbation:g}")
    if config.seeds and arm.trained.main:
        parts.append(f"s{arm.trained.seed}")
    name = "-".join(part for part in parts if part)
    return Arm(arm.policy, arm.latent, arm.perturbation, arm.trained, name)


class _Finder:
    """Looks up trained models; remembers which are missing."""

    def __init__(
        self, config: EvalConfig, inputs: Mapping[str, Artifact], context: StageContext
    ) -> None:
        self._config, self._inputs = config, inputs
        self._workspace, self._among = context.workspace, context.among
        self._missing: list[str] = []
        self._hint = ""

    def models(self, policy: str) -> Iterator[Trained]:
        """Yield the models of a policy with the horizons they are run at."""
        if policy == RANDOM:
            yield Trained()
            return
        horizons: Sequence[int | None] = tuple(
            _steps(horizon) for horizon in dict.fromkeys(self._config.horizon)
        ) or (None,)
        if policy == "mlp":  # acts on every observation
            horizons = (None,)
        seeds: Sequence[int | None] = range(self._config.seeds or 0) or (None,)
        for horizon in horizons:
            like = self._given(policy, horizon) if seeds != (None,) else None
            for seed in seeds:
                artifacts = self._find(policy, horizon, seed, like)
                if artifacts:
                    like = like or artifacts
                    yield Trained(artifacts, _executed(artifacts) if horizon is None else horizon)
                else:
                    self._miss(policy, horizon, seed, like)

    def _given(self, policy: str, horizon: int | None) -> Mapping[str, Artifact] | None:
        """Return the models that the evaluation reads where they are of this policy and horizon."""
        kind = "diffusion" if policy == METHOD else "baseline"
        leading = self._inputs.get(kind)
        if leading is None or (kind == "baseline" and leading.manifest.config["method"] != policy):
            return None
        found = self._same_data(leading)
        return found if found and (policy == "mlp" or self._fits(found, horizon)) else None

    def refuse_missing(self) -> None:
        """Raise where a model was not found."""
        if self._missing:
            raise ConfigError(
                "no trained model from " + self._inputs["snippets"].reference + " for: "
                + "; ".join(self._missing),
                self._hint,
            )  # fmt: skip

    def _find(
        self,
        policy: str,
        horizon: int | None,
        seed: int | None,
        like: Mapping[str, Artifact] | None,
    ) -> Mapping[str, Artifact] | None:
        given = self._inputs
        if not self._config.is_grid:
            if policy == METHOD:
                return {kind: given[kind] for kind in LINEAGE if kind in given}
            if "baseline" in given and given["baseline"].manifest.config["method"] == policy:
                return given
        kind = "diffusion" if policy == METHOD else "baseline"
        for artifact in self._candidates(kind):
            if kind == "baseline" and artifact.manifest.config["method"] != policy:
                continue
            found = self._same_data(artifact)
            if found and like and not _alike(found, like):
                continue
            if found and _has_seed(found, seed) and (policy == "mlp" or self._fits(found, horizon)):
                artifact.check()
                return found
        return None

    def _candidates(self, kind: str) -> list[Artifact]:
        known = self._workspace.artifacts(kind) if self._among is None else self._among
        return [artifact for artifact in reversed(known) if artifact.kind == kind]

    def _same_data(self, artifact: Artifact) -> dict[str, Artifact] | None:
        """Return an artifact's chain where it begins with the snippets of this evaluation."""
        kinds = LINEAGE[:-1] if artifact.kind == "diffusion" else ("snippets",)
        try:
            found = self._workspace.ancestors(artifact, kinds)
        except ArtifactError:  # a chain that is gone in part is nobody's model
            return None
        if len(found) < len(kinds) or found["snippets"].digest != self._inputs["snippets"].digest:
            return None
        return {**found, artifact.kind: artifact}

    def _fits(self, found: Mapping[str, Artifact], horizon: int | None) -> bool:
        """Tell whether a model was trained for the horizon, or may be run at it."""
        vae = self._inputs.get("vae")
        if horizon is None or (self._config.one_model and METHOD in self._config.policy):
            # Beside a model of LWD: what was trained with snippets of the same length.
            return vae is None or _trained_for(found) == _steps(
                vae.manifest.config["snippet_length"]
            )
        if self._config.is_grid and not self._config.one_model:
            return _trained_for(found) == horizon
        reach = (
            _steps(found["baseline"].manifest.config["snippet_length"])
            if "baseline" in found
            else 0
        )
        return bool(reach == 0 or 0 < horizon <= reach)

    def _miss(
        self,
        policy: str,
        horizon: int | None,
        seed: int | None,
        like: Mapping[str, Artifact] | None,
    ) -> None:
        words = [f"{policy}"]
        words += [f"at horizon {horizon or 'episode'}"] if horizon is not None else []
        words += [f"with training seed {seed}"] if seed is not None else []
        words += [f"and the settings of {list(like.values())[-1].reference}"] if like else []
        self._missing.append(" ".join(words))
        length = f" --snippet-length {horizon or 'episode'}" if horizon is not None else ""
        seeded = f" --seed {seed}" if seed is not None else ""
        if self._hint:
            return
        if policy == METHOD:
            self._hint = (
                f"lwdctl train-vae{length}{seeded}, encode, train-diffusion{seeded};"
                " or --one-model to run one model at every horizon"
            )
        else:
            self._hint = f"lwdctl train-baseline {policy}{length}{seeded}"


def _alike(found: Mapping[str, Artifact], other: Mapping[str, Artifact]) -> bool:
    """Tell whether two chains were made with the same settings, seeds and machines aside.

    A setting that one of them does not know yet counts as the same.
    """
    return all(
        one.manifest.config[name] == two.manifest.config[name]
        for one, two in ((found[kind], other[kind]) for kind in found if kind in other)
        for name in set(one.manifest.config) & set(two.manifest.config) - {"seed", "device"}
    )


def _has_seed(found: Mapping[str, Artifact], seed: int | None) -> bool:
    """Tell whether every trained part was trained with a seed."""
    trained = [item for kind, item in found.items() if kind in ("vae", "diffusion", "baseline")]
    return seed is None or all(item.manifest.provenance.get("seed") == seed for item in trained)


def _executed(found: Mapping[str, Artifact]) -> int | None:
    """Return the steps that a baseline was trained to execute per query, None for all it has."""
    if "baseline" not in found:
        return None
    return found["baseline"].manifest.config["executed"] or None


def _trained_for(found: Mapping[str, Artifact]) -> int:
    model = found.get("vae") or found["baseline"]
    return _executed(found) or _steps(model.manifest.config["snippet_length"])


def _steps(length: int | str) -> int:
    """Return a number of steps, 0 for the whole episode."""
    return 0 if isinstance(length, str) else length
