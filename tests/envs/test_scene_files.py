"""A recorded scene (MJCF) opens files of the simulator alone."""

from __future__ import annotations

import os

import pytest

from lwdctl.core.robosuite_import import check_scene

SCENE = (
    "<mujoco><compiler meshdir='meshes/'/><asset>{}</asset><worldbody><geom size='1'/></worldbody>"
    "</mujoco>"
)


@pytest.fixture
def assets(tmp_path):
    (tmp_path / "assets" / "textures").mkdir(parents=True)
    (tmp_path / "assets" / "textures" / "wood.png").write_bytes(b"wood")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "assets" / "out.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(tmp_path / "assets" / "pipe.png")
    return tmp_path / "assets"


def test_the_simulators_own_files_are_accepted(assets):
    own = f"<texture name='a' file='{assets}/textures/../textures/wood.png'/><mesh name='b'/>"
    check_scene("<?xml version='1.0' encoding='utf8'?><!-- wood -->" + SCENE.format(own), assets)


@pytest.mark.parametrize(
    "element",
    [
        "<texture name='a' file='{root}/secret.png'/>",
        "<texture name='a' fileright='{root}/secret.png'/>",
        "<mesh name='a' file='{assets}/../secret.png'/>",
        "<hfield name='a' file='/etc/passwd'/>",
        "<skin name='a' file='secret.skn'/>",
        "<model name='a' file='{root}/secret.xml'/>",
        "<flexcomp name='a' file='/dev/zero'/>",
        "<texture name='a' file='{assets}/out.png'/>",
        "<texture name='a' file='{assets}/pipe.png'/>",
        "<texture name='a' file='{assets}'/>",
        "<texture name='a' file='textures/wood.png'/>",
        "<texture name='a' file='{assets}/nul&#x0a;.png'/>",
        "<include file='{assets}/textures/wood.png'/>",
        "<plugin plugin='mujoco.elasticity.cable'/>",
    ],
)
def test_everything_else_is_refused_with_its_place(assets, element):
    scene = SCENE.format(element.format(assets=assets, root=assets.parent))
    with pytest.raises(ValueError, match=element[1:6]):
        check_scene(scene, assets)


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        ("<!DOCTYPE m [<!ENTITY a SYSTEM '/etc/passwd'>]><mujoco>&a;</mujoco>", "document type"),
        ("<mujoco><compiler strippath='true'/></mujoco>", "strippath"),
        ("<mujoco>", "no XML"),
        ("<mujoco/>" + " " * 2**25, "characters"),
    ],
)
def test_what_could_hide_a_name_is_refused(assets, scene, message):
    with pytest.raises(ValueError, match=message):
        check_scene(scene, assets)
