"""`encode`: encode every snippet with a trained VAE."""

from __future__ import annotations

from collections.abc import Mapping

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LATENTS_PAYLOAD
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import EncodeConfig
from lwdctl.core.config import to_mapping
from lwdctl.models.vae import load_vae
from lwdctl.stages.stage import StageContext
from lwdctl.training.encode import encode, latent_summary
from lwdctl.training.loop import choose_device


def run(config: EncodeConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Encode and publish a `latents` artifact; see `training.encode.encode`."""
    vae, source = inputs["vae"], inputs["snippets"]
    store, device = SnippetStore.open(source.path), choose_device(config.device)
    model = load_vae(vae, device)
    with context.workspace.begin(
        "latents",
        context.name or vae.name,
        config=to_mapping(config),
        inputs=[source, vae],
    ) as output:
        latents = encode(model, store, config, output.path / LATENTS_PAYLOAD, context.progress)
        summary = latent_summary(latents)
        if not summary["active_units"]:
            settings = vae.manifest.config
            context.progress.message(
                "warning: no component of the latents varies from snippet to snippet (active_units"
                " 0), so that all policies decoded from them are nearly the same. Where one policy"
                " serves every demonstration, this is right; otherwise train the VAE with a smaller"
                f" --beta-kl (it had {settings.get('beta_kl')}) or more --updates (it had"
                f" {settings.get('updates')})"
            )
        return output.publish(summary, device=str(device))
