"""Nodes that lead to no output: they hold no channel, and what goes out neither has them nor breaks on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Array, assert_same_outputs, feed_for, outputs, text_model
from onnx import helper

from onnx_condense import condense
from onnx_condense.errors import ModelError
from onnx_condense.network.live import live
from onnx_condense.network.model import load, serialized
from onnx_condense.outcome import Condensed

HEAD = '<ir_version: 9, opset_import: ["" : 18, "custom" : 1]>'


def copies() -> dict[str, Array]:
    """Six channels, each of them stored twice."""
    rng = np.random.default_rng(0)
    half = rng.standard_normal((5, 6)).astype(np.float32)
    return {"w": np.concatenate([half, half], 1), "v": rng.standard_normal((12, 3)).astype(np.float32)}


def network(rest: str, stored: dict[str, Array] | None = None, head: str = HEAD) -> onnx.ModelProto:
    """Twelve channels `a`, read by the output and by other nodes."""
    text = f"{head} g (float[N,5] x) => (float[N,3] y) {{ h = MatMul(x, w) a = Tanh(h) {rest} y = MatMul(a, v) }}"
    return text_model(text, copies() | (stored or {}))


def narrowed(proto: onnx.ModelProto) -> Condensed:
    """Without its copies, with the same answers."""
    found = condense(proto, threads=1)
    assert [(s.name, s.after) for s in found.report.spaces if s.before != s.after] == [("h", 6)]
    onnx.checker.check_model(found.model, full_check=True)
    return found


ONES = np.ones(12, np.float32)
BODIES = """c = Constant<value = bool {1}>()
u = If (c) <then_branch = t () => (float[N,12] t1) { t1 = Neg(a) },
            else_branch = e () => (float[N,12] e1) { e1 = Softmax(a) }>"""
IDLE: dict[str, tuple[str, dict[str, Array]]] = {
    "mixes the channels": ("u = Softmax<axis = 1>(a)", {}),
    "has one number per channel": ("u = LayerNormalization(a, s)", {"s": ONES}),
    "knows the width": ("u = Reshape(a, r)", {"r": np.array([-1, 12])}),
    "several in a row": ("s = Softmax(a) t = Neg(s) u = MatMul(t, w2)", {"w2": np.ones((12, 4), np.float32)}),
    "reads sizes": ("s = Shape(a) u = Cast<to = 1>(s)", {}),
    "is in a circle of ties": ("s = Neg(a) u = Add(s, big)", {"big": np.ones((1, 12), np.float32)}),
    "takes it into its body": (BODIES, {}),
}


@pytest.mark.parametrize(("rest", "stored"), IDLE.values(), ids=IDLE)
def test_what_leads_to_no_output_holds_no_channel(rest: str, stored: dict[str, Array]) -> None:
    proto = network(rest, stored)
    found = narrowed(proto)
    assert_same_outputs(proto, found.model)
    assert [n.op_type for n in found.model.graph.node] == ["MatMul", "Tanh", "MatMul"]
    assert {t.name for t in found.model.graph.initializer} == {"w", "v"}


def test_what_onnx_runtime_does_not_load_is_refused_though_that_leads_nowhere() -> None:
    """Nothing could be proved against the network as it came."""
    with pytest.raises(ModelError, match="Mystery"):
        narrowed(network("u = custom.Mystery(a)"))


def test_a_body_that_makes_nothing_of_a_channel_does_not_hold_it() -> None:
    proto = network(
        "c = Constant<value = bool {1}>() "
        "b = If (c) <then_branch = t () => (float[N,5] t1) { q = Softmax(a) t1 = Neg(x) },"
        " else_branch = e () => (float[N,5] e1) { e1 = Abs(x) }> "
        "z = ReduceMean(b)"
    )
    proto.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 1]))
    found = narrowed(proto)
    before, after = outputs(proto, feed_for(proto)), outputs(found.model, feed_for(proto))
    np.testing.assert_array_equal(before[1], after[1])


@pytest.mark.parametrize("ir", [3, 9])
def test_inputs_stay_and_constants_go(ir: int) -> None:
    proto = network("u = Mul(a, s) t = Add(u, x)", {"s": ONES, "d": ONES})
    proto.graph.node[3].input[1] = "z"
    proto.ir_version = ir
    infos = [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 12])]
    infos += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer]
    proto.graph.input.extend(infos if ir == 3 else infos[:1])
    found = narrowed(proto)
    stored = {t.name for t in found.model.graph.initializer}
    assert [i.name for i in found.model.graph.input if i.name not in stored] == ["x", "z"]
    # What nobody ever read is as it was.
    assert stored == {"w", "v", "d"}
    assert_same_outputs(proto, found.model)


def test_a_default_that_callers_may_override_stays() -> None:
    proto = network("u = Mul(a, s)", {"s": ONES})
    proto.graph.input.append(helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [12]))
    found = narrowed(proto)
    assert [i.name for i in found.model.graph.input] == ["x", "s"]
    assert {t.name for t in found.model.graph.initializer} == {"w", "v", "s"}


def test_a_weight_that_idle_nodes_read_too_is_stored_once() -> None:
    found = narrowed(network("t = Transpose<perm = [1, 0]>(w) u = MatMul(a, t)"))
    assert {t.name: tuple(t.dims) for t in found.model.graph.initializer} == {"w": (5, 6), "v": (6, 3)}


def test_what_stays_goes_out_as_it_came(tmp_path: Path) -> None:
    stored = {"w": np.eye(5, 12, dtype=np.float32), "s": ONES}
    proto = text_model(
        f"{HEAD} g (float[N,5] x) => (float[N,12] y) {{ y = MatMul(x, w) u = Mul(y, s) }}",
        {"w": stored["w"], "s": ONES},
    )
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    path.write_bytes(serialized(proto))
    found = condense(path, threads=1)
    assert found.report.status == "unchanged"
    found.save(out)
    assert out.read_bytes() == path.read_bytes()


def test_a_network_of_live_nodes_alone_is_not_copied() -> None:
    one = load(network(""))
    assert live(one) is one
    other = load(network("u = Softmax(a)"))
    assert [n.result for n in live(other).nodes] == ["h", "a", "y"]
    assert live(other).given is other.given
    assert len(other.proto.graph.node) == 4
