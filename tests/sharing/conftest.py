"""A workspace with an evaluated policy, a Hub of our own, and a machine without a token file."""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path

import pytest

from lwdctl.artifacts.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
import toy_chain
from hub_server import TOKEN, HubServer

sys.path.pop(0)
sys.path.pop(0)


@pytest.fixture(autouse=True)
def _own_machine(tmp_path, monkeypatch):
    """Nothing of the user's home is read or written, and no retry waits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LWDCTL_WORKSPACE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server has none
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("lwdctl.data.fetch.PAUSES", (0.0,))


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="session")
def _made(tmp_path_factory):
    """A toy chain as its stages would leave it, with logs beside the models."""
    root = tmp_path_factory.mktemp("shared") / "runs"
    toy_chain.publish_chain(root, toy_chain.TOY)
    return root


@pytest.fixture
def ours(_made, tmp_path):
    """The workspace of whoever pushes."""
    shutil.copytree(_made, tmp_path / "ours")
    return Workspace(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path):
    """The empty workspace of whoever pulls."""
    return Workspace(tmp_path / "theirs")


@pytest.fixture(scope="session")
def _pushed(_made):
    """A repository that holds the toy policy, and its large files."""
    import lwdctl
    from lwdctl.core.progress import SilentProgress

    with pytest.MonkeyPatch.context() as patched, HubServer() as server:
        patched.setenv("HF_ENDPOINT", server.url)
        patched.setenv("HF_TOKEN", TOKEN)
        patched.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        lwdctl.push(
            "diffusion/toy", "me/toy", license="mit", workspace=_made, progress=SilentProgress()
        )
        return server.repositories["me/toy"], server.stored


@pytest.fixture
def pushed(hub, _pushed):
    """The server, which holds the toy policy."""
    repository, stored = _pushed
    hub.repositories["me/toy"] = copy.deepcopy(repository)
    hub.stored.update(stored)
    return hub
