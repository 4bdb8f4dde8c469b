"""Multiply-accumulates of networks that leave sizes open are those of the first sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from endtoend import run, timer  # noqa: F401 - a fixture that every test uses
from mlps import Array, Net, mlp

from onnx_condense.cost import Work, count_macs
from onnx_condense.network.model import Network
from onnx_condense.proving.rechecking import recheck
from onnx_condense.search.mac_cost import MacCosts
from onnx_condense.spaces import find_spaces

if TYPE_CHECKING:
    from pathlib import Path

# Of `pyramid` on pictures of 8 x 8: 3 x 3 kernels at 64 places, at 16 places after a stride, and a layer on means.
FINE, COARSE, LAST = 64 * 12 * 27, 16 * 16 * 12 * 9, 16 * 4
PICTURES: Array = np.random.default_rng(1).standard_normal((60, 3, 8, 8)).astype(np.float32)


def pyramid(height: int | str = "h", width: int | str = "w") -> onnx.ModelProto:
    """Two convolutions with a stride between them, and a head on means over all places."""
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 3, height, width]})
    pads = [1, 1, 1, 1]
    fine = net.node("Relu", net.node("Conv", "x", net.weight("A", rng.standard_normal((12, 3, 3, 3))), pads=pads))
    weight = net.weight("B", rng.standard_normal((16, 12, 3, 3)))
    coarse = net.node("Relu", net.node("Conv", fine, weight, pads=pads, strides=[2, 2]))
    flat = net.node("Flatten", net.node("GlobalAveragePool", coarse))
    net.node("Gemm", flat, net.weight("H", rng.standard_normal((16, 4))), out="y")
    return net.model({"y": ["N", 4]})


def test_open_sizes_are_those_of_the_sample() -> None:
    work = Work({"x": PICTURES[:1]})
    assert work.of(Network(pyramid())) == FINE + COARSE + LAST == count_macs(Network(pyramid(8, 8)))
    assert Work().of(Network(pyramid())) == 12 * 27 + 16 * 12 * 9 + LAST
    assert work.of(Network(pyramid(4, 4))) == (FINE + COARSE) // 4 + LAST, "sizes that are declared stay"


def test_a_first_axis_that_is_no_batch_counts_too() -> None:
    network = Network(mlp((3, 6, 2)))
    assert Work().of(network) == Work({"x": np.ones((1, 3))}).of(network) == 30
    assert Work({"x": np.ones((5, 3))}).of(network) == 150


def test_costs_at_any_widths_are_counted_alike() -> None:
    network, work = Network(pyramid()), Work({"x": PICTURES[:1]})
    view = find_spaces(network)
    costs = MacCosts(network, view, work)
    full = [s.width for s in view.spaces]
    fine, coarse = full.index(12), full.index(16)
    assert costs.total(full) == work.of(network)
    assert costs.saving(full, fine, 6) == FINE // 2 + COARSE // 2
    assert costs.saving(full, coarse, 8) == COARSE // 2 + LAST // 2


def declared(model: onnx.ModelProto) -> Network:
    """The network with the sizes of the pictures written into it."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.input[0].CopyFrom(pyramid(8, 8).graph.input[0])
    del model.graph.value_info[:]
    return Network(model)


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_limit_holds_for_the_sample(share: float, tmp_path: Path) -> None:
    """With open sizes counted as 1 every one of these limits would hold for the dense network."""
    dense = FINE + COARSE + LAST
    found = run(pyramid(), calibration={"x": PICTURES}, max_macs=int(share * dense), tolerance=None)
    assert found.report.macs is not None
    assert found.report.macs.before == dense
    assert 0.5 * share * dense < found.report.macs.after <= share * dense
    assert found.report.macs.after == count_macs(declared(found.model))
    assert "MACs, and limits on them, are those of the first sample: x of 1 x 3 x 8 x 8" in found.report.notes
    paths = [tmp_path / "dense.onnx", tmp_path / "small.onnx"]
    onnx.save(pyramid(), paths[0])
    onnx.save(found.model, paths[1])
    again = recheck(*paths, verification={"x": PICTURES}, tolerance=10.0)
    assert again.macs == found.report.macs
    assert found.report.notes[0] in again.notes


def test_a_limit_on_work_cuts_where_the_work_is() -> None:
    """Four times as many places: the first layer is worth more of it than of the parameters."""

    def share(**limit: float) -> float:
        report = run(pyramid(), calibration={"x": PICTURES}, tolerance=None, **limit).report
        before, after = (next(getattr(s, w) for s in report.spaces if s.before == 12) for w in ("before", "after"))
        return float(after / before)

    assert share(max_macs=(FINE + COARSE) // 2) < share(keep=0.5)


@pytest.mark.parametrize(
    ("shape", "told"), [(("n", 3), ""), ((5, 3), ""), (("n", "t", 3), "as 1: x"), (("n", 4, 3), "")]
)
def test_without_samples_they_count_as_one_and_that_is_told(shape: tuple[int | str, ...], told: str) -> None:
    net = Net({"x": list(shape)})
    net.node("MatMul", "x", net.weight("w", np.eye(3, 6)), out="y")
    notes = run(net.model({"y": [*shape[:-1], 6]})).report.notes
    assert [n.split("leaves open ")[1] for n in notes if "leaves open" in n] == [told] * bool(told)


def test_sizes_between_are_followed() -> None:
    """Sizes that the file writes beside tensors as unknown do not hide those that follow from the sample."""
    model = pyramid()
    known = onnx.shape_inference.infer_shapes(model)
    for value in known.graph.value_info:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_param = f"{value.name}_{axis}"
    assert len(known.graph.value_info) > 4
    assert Work({"x": PICTURES[:1]}).of(Network(known)) == FINE + COARSE + LAST
