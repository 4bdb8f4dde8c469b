"""Shapes and work of a network whose sizes are left open, for a certain feed."""

from __future__ import annotations

import numpy as np
import onnx
from builders import text_model

from onnx_condense.cost import count_macs
from onnx_condense.network.model import Network
from onnx_condense.network.sized import sized

HEAD = '<ir_version: 8, opset_import: ["": 13]>'


def network(width: str) -> Network:
    """A convolution, a pool, and a product with a weight that is too large to be small."""
    text = (
        f"{HEAD} agraph (float[N, 3, {width}, {width}] x, float[K] k) => (float[N, 700] y, float[K] z) {{ "
        "a = Conv(x, w) p = GlobalAveragePool(a) f = Flatten(p) y = MatMul(f, v) z = Relu(k) }"
    )
    return Network(text_model(text, {"w": np.ones((8, 3, 3, 3), "f4"), "v": np.ones((8, 700), "f4")}))


def feed(rows: int, width: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros((rows, 3, width, width), "f4"), "k": np.zeros(5, "f4")}


def test_sizes_and_work_are_those_of_the_feed() -> None:
    found = sized(network("W"), feed(2, 10))
    assert found.shapes["a"] == (2, 8, 8, 8)
    assert found.shapes["y"] == (2, 700)
    assert found.shapes["z"] == (5,)
    assert count_macs(found) == 2 * (8 * 64 * 27 + 8 * 700)
    assert count_macs(network("W")) < count_macs(found)


def test_a_network_that_leaves_nothing_open_is_itself() -> None:
    text = f"{HEAD} agraph (float[4, 3] x) => (float[4, 3] y) {{ y = Relu(x) }}"
    plain = Network(text_model(text))
    assert sized(plain, {"x": np.zeros((4, 3), "f4")}) is plain


def test_the_network_is_not_changed_and_no_large_weight_is_copied() -> None:
    given = network("W")
    before = given.proto.SerializeToString(deterministic=True)
    found = sized(given, feed(1, 6))
    assert given.proto.SerializeToString(deterministic=True) == before
    stored = {t.name: t for t in found.proto.graph.initializer}
    assert not stored["v"].raw_data
    assert stored["w"].raw_data
    assert tuple(stored["v"].dims) == (8, 700)


def test_sizes_that_the_network_computes_are_found() -> None:
    """A view that keeps the batch, whatever it is."""
    text = (
        f"{HEAD} agraph (float[N, 6] x) => (float[N, A, B] y) {{ "
        "s = Shape(x) n = Gather<axis=0>(s, zero) t = Concat<axis=0>(n, rest) y = Reshape(x, t) }"
    )
    stored = {"zero": np.array([0], np.int64), "rest": np.array([2, -1], np.int64)}
    assert sized(Network(text_model(text, stored)), {"x": np.zeros((7, 6), "f4")}).shapes["y"] == (7, 2, 3)


def test_other_kinds_of_inputs_stay_as_they_are() -> None:
    sequence = onnx.helper.make_tensor_sequence_value_info("q", onnx.TensorProto.FLOAT, None)
    proto = text_model(f"{HEAD} agraph (float[N] x) => (float[N] y) {{ y = Relu(x) }}")
    proto.graph.input.append(sequence)
    assert sized(Network(proto), {"x": np.zeros(3, "f4")}).shapes["y"] == (3,)
