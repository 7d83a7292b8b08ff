"""Graphs that somebody else might have exported: refused before they are opened."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest

from lwdctl.core.errors import ArtifactError
from lwdctl.deploy.graph_checks import check_graph
from lwdctl.deploy.runtime import ExportedPolicy

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
FLOAT = onnx.TensorProto.FLOAT


def small_graph(op="Relu", domain=""):
    """Return a model of one node."""
    ports = [onnx.helper.make_tensor_value_info(name, FLOAT, [2]) for name in "xy"]
    node = onnx.helper.make_node(op, ["x"], ["y"], domain=domain)
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:])
    versions = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=versions, ir_version=8)


def external(place):
    """Return a change that puts the values of a tensor into another file."""

    def change(model):
        tensor = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)
        model.graph.initializer.append(tensor)

    return change


def location_only(model):
    tensor = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer.append(tensor)


def external_constant(model):
    tensor = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))


def custom_operator(model):
    model.graph.node.add(op_type="Run", domain="somebody.custom", output=["z"])


def custom_import(model):
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def loop(model):
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", [], [], body=body))


def function(model):
    versions = [onnx.helper.make_opsetid("", 17)]
    node = onnx.helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(
        onnx.helper.make_function("somebody", "F", ["a"], ["b"], [node], versions)
    )


def sparse(model):
    model.graph.sparse_initializer.add().values.name = "s"


CHANGES = {
    "external, absolute": (external("/etc/passwd"), "values in another file"),
    "external, upwards": (external("../../secret"), "values in another file"),
    "external, beside": (external("weights.bin"), "values in another file"),
    "external without a place": (location_only, "values in another file"),
    "external constant": (external_constant, "values in another file"),
    "custom operator": (custom_operator, "operators of 'somebody.custom'"),
    "custom import": (custom_import, "operators of 'com.microsoft'"),
    "loop": (loop, "a graph inside a node"),
    "function": (function, "functions"),
    "sparse tensors": (sparse, "sparse tensors"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("graph", ["plan", "act"])
def test_a_graph_that_is_more_than_numbers_is_not_opened(
    exported, tmp_path, monkeypatch, name, graph
):
    change, message = CHANGES[name]
    directory = tmp_path / "policy"
    shutil.copytree(exported()[1], directory)
    path = directory / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    described = json.loads((directory / "policy.json").read_text())
    content = path.read_bytes()
    described["files"][path.name] = {
        "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    (directory / "policy.json").write_text(json.dumps(described))
    opened = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda place, *words, **more: opened.append(place) or session(place, *words, **more),
    )
    with pytest.raises(ArtifactError, match=message):
        ExportedPolicy(directory)
    assert str(path) not in opened


def test_a_linked_graph_is_refused(exported, tmp_path):
    directory = tmp_path / "policy"
    shutil.copytree(exported()[1], directory)
    (directory / "act.onnx").rename(tmp_path / "elsewhere.onnx")
    (directory / "act.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match="is a link"):
        ExportedPolicy(directory)


def test_damaged_files_are_an_error_or_pass_as_onnx_parses_them(tmp_path):
    """Cut, flipped or random bytes: an `ArtifactError` or nothing, and never what onnx refuses."""
    path, content = tmp_path / "g.onnx", small_graph().SerializeToString()
    rng = np.random.default_rng(0)
    passed = 0
    for turn in range(600):
        changed = bytearray(content[: rng.integers(len(content) + 1)] if turn % 3 == 0 else content)
        for _ in range(1 + turn % 4):
            if changed and turn % 3:
                changed[rng.integers(len(changed))] = rng.integers(256)
        path.write_bytes(bytes(changed))
        try:
            check_graph(path)
        except ArtifactError:
            continue
        passed += 1
        try:
            model = onnx.ModelProto.FromString(bytes(changed))
        except Exception:  # noqa: BLE001 - texts that are no UTF-8, which runtimes refuse
            continue
        assert not model.functions
        assert all(node.domain in ("", "ai.onnx") for node in model.graph.node)
        assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert passed


def test_a_plain_graph_passes(tmp_path):
    path = tmp_path / "g.onnx"
    path.write_bytes(small_graph().SerializeToString())
    check_graph(path)
    path.write_bytes(small_graph(domain="x.y").SerializeToString())
    with pytest.raises(ArtifactError, match=r"operators of 'x\.y'"):
        check_graph(path)


def test_bytes_that_nest_for_ever_are_refused(tmp_path):
    """Lengths that count on: neither recursion nor time without end."""
    path = tmp_path / "g.onnx"
    for content in (
        b"",
        b"\x3a",
        b"\xff" * 1000,
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x0b" * 9,
        b"\x08",
    ):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"g\.onnx"):
            check_graph(path)


def test_a_field_whose_number_is_cut_to_another_is_refused(tmp_path):
    """ONNX Runtime drops the bits of a field's key beyond 32: this is an import of operators."""
    key, domain = b"\x8a\x80\x80\x80\x10", b"com.microsoft"
    versions = key + bytes([len(domain)]) + domain + b"\x10\x01"  # domain, version
    path = tmp_path / "g.onnx"
    content = small_graph().SerializeToString() + b"\x42" + bytes([len(versions)]) + versions
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="it is damaged"):
        check_graph(path)
