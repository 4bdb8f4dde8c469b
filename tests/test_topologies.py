"""docs/topologies.md and docs/ops.md say what the tools find: rows of our own networks, the form of all, every op."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnx_condense.cost import count_parameters
from onnx_condense.ops import registered

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", name="topologies")
def _topologies() -> ModuleType:
    return importlib.import_module("topologies")


@pytest.fixture(scope="module", name="optable")
def _optable() -> ModuleType:
    return importlib.import_module("optable")


def built(tmp_path: Path, text: str, *weights: tuple[str, tuple[int, ...]]) -> Path:
    """A network of random float32 weights in a file."""
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17, "other" : 1]> {text}')
    rng = np.random.default_rng(0)
    for name, shape in weights:
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    return path


# ---- the page of topologies ----


@pytest.mark.parametrize("name", ["digits", "ignition"])
def test_rows_of_our_networks_are_what_a_fresh_look_gives(topologies: ModuleType, name: str) -> None:
    rows = topologies.written_rows(topologies.PAGE.read_text(encoding="utf-8"))
    assert rows[name] == topologies.survey(ROOT / "models" / f"{name}.onnx").cells()


def test_the_page_is_what_its_rows_make(topologies: ModuleType) -> None:
    page = topologies.PAGE.read_text(encoding="utf-8")
    assert page == topologies.page_of(topologies.written_rows(page))


def test_every_row_is_well_formed(topologies: ModuleType) -> None:
    rows = topologies.written_rows(topologies.PAGE.read_text(encoding="utf-8"))
    assert len(rows) > 2
    for name, cells in rows.items():
        assert len(cells) == len(topologies.COLUMNS), name
        narrowable, spaces = map(int, cells[4].split(" / "))
        assert 0 <= narrowable <= spaces
        held = [float(entry.rpartition(" ")[2]) for entry in cells[6].split(topologies.BETWEEN) if entry]
        assert float(cells[3]) + sum(held) == pytest.approx(100, abs=0.01 * (len(held) + 1)), name


def test_other_rows_stay_as_they_are_written(topologies: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    old = ("elsewhere", "3", "1000", "40.00", "1 / 2", "0.00", "no rule for Odd 60.00")
    page.write_text(topologies.page_of({"elsewhere": old}), encoding="utf-8")
    topologies.main([ROOT / "models" / "digits.onnx"], out=page)
    text = page.read_text(encoding="utf-8")
    rows = topologies.written_rows(text)
    assert rows["elsewhere"] == old
    assert set(rows) == {"elsewhere", "digits"}
    share = 60 * 1000 / (1000 + int(rows["digits"][2]))
    assert f"together: {share:.2f} % (Odd {share:.2f})." in text


# ---- what a row counts ----


def test_free_is_what_a_row_or_column_of_a_space_that_narrows_owns(topologies: ModuleType, tmp_path: Path) -> None:
    text = """net (float[n, 3] x) => (float[n, 2] y) {
        h = MatMul(x, first)
        a = Add(h, bias)
        r = Relu(a)
        s = MatMul(r, second)
        y = Add(s, last)
    }"""
    path = built(tmp_path, text, ("first", (3, 5)), ("bias", (5,)), ("second", (5, 2)), ("last", (2,)))
    found = topologies.survey(path)
    assert (found.parameters, found.free) == (32, 30)
    assert (found.narrowable, found.spaces) == (1, 2)
    assert dict(found.held) == {topologies.BESIDE: 2}


def test_what_holds_a_weight_is_the_first_refusal_in_graph_order(topologies: ModuleType, tmp_path: Path) -> None:
    text = """net (float[n, 3] x) => (float[n, 4] h, float[n, 2] y, float[n, 4] o) {
        h = MatMul(x, first)
        o = other.Odd(h)
        y = MatMul(h, second)
    }"""
    path = built(tmp_path, text, ("first", (3, 4)), ("second", (4, 2)))
    found = topologies.survey(path)
    # Its channels are also a graph output, but that is the end of the graph.
    assert found.free == 0
    assert dict(found.held) == {"no rule for Odd": 12 + 8}
    assert topologies.without_rule([found.cells()]) == (100.0, {"Odd": 100.0})


def test_a_weight_stored_once_counts_once_and_as_its_freest_use(topologies: ModuleType, tmp_path: Path) -> None:
    text = """net (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
        a = MatMul(x, shared)
        r = Relu(a)
        y = MatMul(r, out)
        z = MatMul(x, shared)
    }"""
    path = built(tmp_path, text, ("shared", (4, 4)), ("out", (4, 4)))
    found = topologies.survey(path)
    assert found.parameters == count_parameters(onnx.load(path)) == 32
    assert found.free == 32
    assert dict(found.held) == {}


def test_what_no_linear_op_reads_is_held_by_its_reader(topologies: ModuleType, tmp_path: Path) -> None:
    text = """net (int64[n] i, float[n, 3] x) => (float[n, 6] e, float[n, 3] o, float[n, 3] y) {
        e = Gather(table, i)
        o = other.Odd(x, numbers)
        y = Mul(x, factor)
    }"""
    path = built(tmp_path, text, ("table", (10, 6)), ("numbers", (7,)), ("factor", (3,)))
    found = topologies.survey(path)
    assert dict(found.held) == {"read by Gather": 60, "no rule for Odd": 7, topologies.BESIDE: 3}


def test_lossless_says_what_the_weights_prove(topologies: ModuleType, tmp_path: Path) -> None:
    text = "net (float[n, 3] x) => (float[n, 2] y) { h = MatMul(x, first) r = Relu(h) y = MatMul(r, second) }"
    path = built(tmp_path, text, ("first", (3, 5)), ("second", (5, 2)))
    model = onnx.load(path)
    first = numpy_helper.to_array(model.graph.initializer[0]).copy()
    first[:, 4] = first[:, 1]
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(first, "first"))
    onnx.save(model, path)
    assert topologies.survey(path).removed == 3 + 2


def test_what_a_barrier_reads_is_held_for_its_reason(topologies: ModuleType, tmp_path: Path) -> None:
    text = """net (float[n, 3] x) => (float[n, 4] y) {
        w = DequantizeLinear(stored, step)
        y = MatMul(x, w)
    }"""
    path = built(tmp_path, text, ("step", ()))
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 4), np.int8), "stored"))
    onnx.save(model, path)
    (reason,) = topologies.survey(path).held
    assert reason.startswith("quantized")


# ---- the page of ops ----


def test_the_page_of_ops_is_in_step_with_the_registry(optable: ModuleType) -> None:
    assert optable.PAGE.read_text(encoding="utf-8") == optable.page()


def test_every_op_has_a_role_and_every_barrier_a_reason(optable: ModuleType) -> None:
    roles = {(rule.domain, rule.op): optable.role(rule) for rule in registered()}
    assert roles["", "Conv"] == "reads and writes"
    assert roles["", "Relu"] == "carries"
    assert roles["", "Transpose"] == "moves"
    assert roles["", "Concat"] == "joins and picks"
    assert roles["", "Softmax"] == "carries"
    assert roles["", "LSTM"] == "reads"
    assert roles["", "NonZero"] == "barrier: ordered, summed up or searched along the channels"
    assert all(reason.partition("barrier: ")[2] for reason in roles.values() if reason.startswith("barrier"))
