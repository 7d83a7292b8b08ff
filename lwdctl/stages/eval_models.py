"""What an evaluation runs: every policy with every model, horizon and perturbation asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lwdctl.artifacts.artifact import Artifact, checked_once
from lwdctl.artifacts.lineage import options_of, settings_of
from lwdctl.configs import LINEAGE, EvalConfig, Horizon, LatentName, lineage_read
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.evaluation.results import magnitude_format
from lwdctl.methods import method_facts
from lwdctl.stages.stage import StageContext

LWD = "lwd"


@dataclass(frozen=True)
class PlannedCondition:
    """One policy with one model under one latent source and one perturbation.

    Attributes:
        policy: Name of the policy.
        latent: Where LWD's latents come from, "" for other policies.
        perturbation: Magnitude of perturbations.
        artifacts: Artifact type to artifact: of LWD the lineage as far as it is read, of a
            baseline the model and its data.
        horizon: Steps executed per re-plan; None for what the model was trained for, or for a
            policy without plans.
        name: File and display name, unique in its evaluation.
    """

    policy: str
    latent: LatentName | Literal[""] = ""
    perturbation: float = 0.0
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    horizon: Horizon | None = None
    name: str = ""

    @property
    def model(self) -> Artifact | None:
        """The artifact that the policy is read from; None for a policy that is not trained."""
        return _first(self.artifacts, "diffusion", "baseline", "latents", "vae")

    @property
    def train_seed(self) -> int | None:
        """Training seed of the model."""
        model = _first(self.artifacts, "diffusion", "baseline", "vae")
        return model.manifest.provenance.get("seed") if model else None


def types_read(config: EvalConfig, named: Collection[str] = ()) -> tuple[str, ...]:
    """Return the artifact types that lead to the models: LWD's lineage, else a baseline's.

    Args:
        config: Settings.
        named: Artifact types of which one artifact was named.
    """
    if LWD in config.policy:
        return LINEAGE if config.is_grid else lineage_read(config.latent, named)
    return ("snippets", "baseline") if _baselines(config) else ("snippets",)


def candidate_types(config: EvalConfig) -> tuple[str, ...]:
    """Return the artifact types of the models among which an evaluation chooses."""
    samples = LWD in config.policy and types_read(config) == LINEAGE
    return (*(("diffusion",) if samples else ()), *(("baseline",) if _baselines(config) else ()))


def distinguished_settings(config: EvalConfig) -> tuple[str, ...]:
    """Return the settings of training for whose values an evaluation finds a model each."""
    by_length = len(config.horizon) > 1 and not config.one_model
    return (
        *(("seed",) if config.seeds is not None else ()),
        *(("snippet_length",) if by_length else ()),
    )


@checked_once()
def plan_conditions(
    config: EvalConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> list[PlannedCondition]:
    """List what is to run, in the order of the options.

    With one horizon, or `--one-model`, and without `--seeds` the given models are run. Otherwise
    every horizon and training seed has a model of its own (with `--one-model` every training seed
    only), found by its lineage: derived from the same snippets, trained with that snippet length
    and seed; the newest, or the last of the candidates. The training seeds of one policy and
    horizon agree in all other settings: in those of the model that was named or is the newest,
    where it fits, else in those of the first model found.

    Raises:
        ConfigError: A model is missing; the message names every one, the hint a command.
    """
    finder = _Finder(config, inputs, context)
    conditions = []
    for policy in dict.fromkeys(config.policy):
        latents: tuple[LatentName | Literal[""], ...] = ("",)
        if policy == LWD:
            latents = tuple(dict.fromkeys(config.latent))
        for artifacts, horizon in finder.models(policy):
            conditions += [
                PlannedCondition(policy, latent, magnitude, artifacts, horizon)
                for latent in latents
                for magnitude in dict.fromkeys(config.perturbation)
            ]
    finder.check_found()
    return [replace(item, name=_name(item, config)) for item in conditions]


def count_conditions(config: EvalConfig) -> int:
    """Return how many conditions an evaluation with these settings has, before its models exist."""
    total = 0
    for policy in dict.fromkeys(config.policy):
        method = method_facts(policy)
        horizons = len(set(config.horizon)) if method.replans else 0
        seeds = config.seeds or 1
        models = (max(1, horizons) * seeds) if method.artifact_type is not None else 1
        total += models * (len(set(config.latent)) if policy == LWD else 1)
    return total * len(set(config.perturbation))


def models_used(
    conditions: Sequence[PlannedCondition], inputs: Mapping[str, Artifact]
) -> list[Artifact]:
    """Return what an evaluation is derived from: its models, else the last of its inputs."""
    models = [item.model for item in conditions if item.model]
    return list({model.path: model for model in models}.values()) or list(inputs.values())[-1:]


def chosen_models(
    config: EvalConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> list[Artifact]:
    """Return the models that an evaluation would choose now."""
    return models_used(plan_conditions(config, inputs, context), inputs)


def trained_for(
    horizon: Horizon, condition: PlannedCondition, config: EvalConfig, context: StageContext
) -> str:
    """Return the option that names a condition's model that was trained for a horizon, or ""."""
    kind = "diffusion" if condition.policy == LWD else "baseline"
    found = _Finder(config, condition.artifacts, context).newest(kind, condition.policy, horizon)
    return f"--{kind} {found.reference.partition('/')[2]}" if found else ""


def _baselines(config: EvalConfig) -> bool:
    return any(method_facts(name).artifact_type == "baseline" for name in config.policy)


def _name(condition: PlannedCondition, config: EvalConfig) -> str:
    parts = [condition.policy, condition.latent]
    if len(config.horizon) > 1 and condition.horizon is not None:
        parts.append(f"h{condition.horizon}")
    if len(set(config.perturbation)) > 1:
        parts.append(f"p{condition.perturbation:{magnitude_format(config.perturbation)}}")
    if config.seeds and condition.model:
        parts.append(f"s{condition.train_seed}")
    return "-".join(part for part in parts if part)


Models = Mapping[str, Artifact]


class _Finder:
    """Looks up trained models; remembers which are missing."""

    def __init__(
        self, config: EvalConfig, inputs: Mapping[str, Artifact], context: StageContext
    ) -> None:
        self._config, self._inputs, self._context = config, inputs, context
        self._lineages: dict[Path, Models | None] = {}
        self._missing: list[str] = []
        self._hints: dict[str, str] = {}

    def models(self, policy: str) -> Iterator[tuple[Models, Horizon | None]]:
        """Yield the models of a policy with the horizons that they are run at."""
        method = method_facts(policy)
        if method.artifact_type is None:
            yield {"snippets": self._inputs["snippets"]}, None
            return
        horizons: Sequence[Horizon | None] = tuple(dict.fromkeys(self._config.horizon)) or (None,)
        if not method.replans:
            horizons = (None,)
        seeds: Sequence[int | None] = range(self._config.seeds or 0) or (None,)
        for horizon in horizons:
            like = self._given(policy, horizon) if seeds != (None,) else None
            for seed in seeds:
                found = self._find(policy, horizon, seed, like)
                if found:
                    like = like or found
                    yield found, _executed(found) if horizon is None else horizon
                else:
                    self._miss(policy, horizon, seed, like)

    def check_found(self) -> None:
        """Raise where a model was not found."""
        if self._missing:
            by_length = LWD in self._hints and "snippet_length" in distinguished_settings(
                self._config
            )
            raise ConfigError(
                f"no trained model from {self._inputs['snippets'].reference} for: "
                + "; ".join(self._missing),
                " && ".join(self._hints.values())
                + ("; or --one-model to run one model at every horizon" * by_length),
            )

    def newest(self, kind: str, policy: str, horizon: Horizon) -> Artifact | None:
        """Return the newest model of a policy that was trained for a horizon, on the same data."""
        for artifact in self._candidates(kind):
            found = self._with_same_data(artifact) if _is_of(artifact, policy) else None
            if found and horizon in _trained_for(found):
                return artifact
        return None

    def _given(self, policy: str, horizon: Horizon | None) -> Models | None:
        """Return the models that the evaluation reads where they are of this policy and horizon."""
        primary = self._inputs.get("diffusion" if policy == LWD else "baseline")
        if primary is None or not _is_of(primary, policy):
            return None
        found = self._with_same_data(primary)
        return found if found and self._fits(policy, found, horizon) else None

    def _find(
        self, policy: str, horizon: Horizon | None, seed: int | None, like: Models | None
    ) -> Models | None:
        given = self._inputs
        if not self._config.is_grid:
            if policy == LWD:
                return {kind: given[kind] for kind in LINEAGE if kind in given}
            if "baseline" in given and _is_of(given["baseline"], policy):
                return given
        for artifact in self._candidates("diffusion" if policy == LWD else "baseline"):
            found = self._with_same_data(artifact) if _is_of(artifact, policy) else None
            if (
                found
                and (like is None or _alike(found, like))
                and _has_seed(found, seed)
                and self._fits(policy, found, horizon)
                and self._is_whole(artifact)
            ):
                return found
        return None

    def _is_whole(self, artifact: Artifact) -> bool:
        """Tell whether the files of a candidate are intact; one that is damaged is passed over."""
        try:
            artifact.check()
        except ArtifactError as error:
            self._context.progress.message(f"{artifact.reference} is passed over: {error.message}")
            return False
        return True

    def _candidates(self, kind: str) -> list[Artifact]:
        among = self._context.candidates
        known = self._context.workspace.artifacts(kind) if among is None else among
        return [artifact for artifact in reversed(known) if artifact.type == kind]

    def _with_same_data(self, artifact: Artifact) -> Models | None:
        """Return an artifact's lineage if it begins with the snippets of this evaluation."""
        if artifact.path not in self._lineages:
            self._lineages[artifact.path] = self._lineage(artifact)
        return self._lineages[artifact.path]

    def _lineage(self, artifact: Artifact) -> Models | None:
        kinds = LINEAGE[:-1] if artifact.type == "diffusion" else ("snippets",)
        try:
            found = self._context.workspace.ancestors(artifact, kinds)
        except ArtifactError:  # a model whose lineage is incomplete cannot be run
            return None
        if len(found) < len(kinds) or found["snippets"].digest != self._inputs["snippets"].digest:
            return None
        return {**found, artifact.type: artifact}

    def _fits(self, policy: str, found: Models, horizon: Horizon | None) -> bool:
        """Tell whether a model was trained for the horizon, or may be run at it."""
        if not method_facts(policy).replans:
            return True
        vae = self._inputs.get("vae")
        if horizon is None or (self._config.one_model and LWD in self._config.policy):
            # Beside a model of LWD: what was trained with snippets of the same length.
            return vae is None or bool(_lengths(found) & _lengths({"vae": vae}))
        if self._config.is_grid and not self._config.one_model:
            return horizon in _trained_for(found)
        reach = found["baseline"].manifest.config["snippet_length"] if "baseline" in found else None
        if reach is None or reach == "episode":
            return True
        return horizon != "episode" and bool(horizon <= reach)

    def _miss(
        self, policy: str, horizon: Horizon | None, seed: int | None, like: Models | None
    ) -> None:
        missing = [policy]
        missing += [f"at horizon {horizon}"] if horizon is not None else []
        missing += [f"with training seed {seed}"] if seed is not None else []
        missing += [f"and the settings of {list(like.values())[-1].reference}"] if like else []
        self._missing.append(" ".join(missing))
        if policy in self._hints:
            return
        vae, beside = self._inputs.get("vae"), policy != LWD and method_facts(policy).replans
        if vae and beside and (horizon is None or self._config.one_model):  # see `_fits`
            horizon = vae.manifest.config["snippet_length"]
        self._hints[policy] = self._commands(policy, horizon, seed, like or {})

    def _commands(
        self, policy: str, horizon: Horizon | None, seed: int | None, like: Models
    ) -> str:
        """Return the commands that train a model, with the settings of another one."""
        parts = {"vae": "train-vae", "latents": "encode", "diffusion": "train-diffusion"}
        if policy != LWD:
            parts = {"baseline": f"train-baseline {policy}"}
        snippets, known = self._inputs["snippets"], self._context.workspace.artifacts("snippets")
        several = len({item.name for item in known}) > 1
        newest = [item.reference for item in known[-1:]]  # none, where the data lie elsewhere
        is_newest = not several and newest == [snippets.reference]
        commands = []
        for kind, command in parts.items():
            first = kind in {"vae", "baseline"}
            others = {
                "snippets": snippets.reference if first and not is_newest else None,
                "run": snippets.name if several and not first else None,
                "snippet_length": horizon if first else None,
                "seed": None if kind == "latents" else seed,
            }
            given = {name: value for name, value in others.items() if value is not None}
            commands.append(f"lwdctl {command}{options_of(like.get(kind), **given)}")
        return " && ".join(commands)


def _first(artifacts: Models, *kinds: str) -> Artifact | None:
    return next((artifacts[kind] for kind in kinds if kind in artifacts), None)


def _is_of(model: Artifact, policy: str) -> bool:
    return bool(model.manifest.config.get("method", LWD) == policy)


def _alike(found: Models, other: Models) -> bool:
    """Tell whether two models were made with the same settings."""
    pairs = [(settings_of(found[k]), settings_of(other[k])) for k in found.keys() & other.keys()]
    return all(one[name] == two[name] for one, two in pairs for name in one.keys() & two.keys())


def _has_seed(found: Models, seed: int | None) -> bool:
    """Tell whether every trained part was trained with a seed."""
    trained = [item for kind, item in found.items() if kind in ("vae", "diffusion", "baseline")]
    return seed is None or all(item.manifest.provenance.get("seed") == seed for item in trained)


def _executed(found: Models) -> int | None:
    """Return the steps that a baseline was trained to execute per re-plan, None for all it has."""
    return found["baseline"].manifest.config["executed"] if "baseline" in found else None


def _trained_for(found: Models) -> set[Horizon]:
    """Return the horizon that a model was trained for: "episode" and its steps are the same."""
    executed = _executed(found)
    return _lengths(found) if executed is None else {executed}


def _lengths(found: Models) -> set[Horizon]:
    """Return the snippet length that a model was trained with; see `_trained_for`."""
    manifest = (found.get("vae") or found["baseline"]).manifest
    length: Horizon = manifest.config["snippet_length"]
    return {length, manifest.summary.get("snippet_length", length)}
