"""The newest trained chain of a workspace, opened for use from Python."""

from __future__ import annotations

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.policies.loading import load_vae
from lwdctl.stages.lwd_policy import Chain
from lwdctl.training.device import choose_device


def open_chain(workspace: Workspace, diffusion: str = "", device: str = "auto") -> Chain:
    """Open a diffusion model with all that it was made from.

    Args:
        workspace: Where to look.
        diffusion: The diffusion model: NAME, NAME:v2 or a path; "" takes the newest chain's.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.

    Raises:
        ArtifactError: None, several unrelated, or a damaged one.
    """
    artifact = workspace.resolve("diffusion", diffusion)
    inputs = {**workspace.ancestors(artifact), "diffusion": artifact}
    place = choose_device(device)
    store = SnippetStore.open(inputs["snippets"].path)
    return Chain(inputs, store, load_vae(inputs["vae"], place), place)
