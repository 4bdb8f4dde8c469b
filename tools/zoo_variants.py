"""One network as other tools write it: the variants that bench_zoo.py judges. Run as a script it makes one.

python tools/zoo_variants.py onnxslim network.onnx slim.onnx
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime as ort
import typer

from onnx_condense.data import input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.runtime import Array

# What quantization looks at, in passes of so many samples.
SEEN, ROWS = 64, 8
# Tensors of so many bytes or more go into a file beside the network.
OUTSIDE = 256

Maker = Callable[[Path, Path, Path], None]


def stored(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with initializers for the tensors of Constant nodes: only those can be kept in full precision."""
    graph, left = model.graph, list[onnx.NodeProto]()
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            graph.initializer.add().CopyFrom(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
        else:
            left.append(node)
    del graph.node[:]
    graph.node.extend(left)
    return model


def beyond_half(graph: onnx.GraphProto) -> list[str]:
    """Nodes with a weight that half precision does not hold: cut to the largest number it makes another network."""
    large = set[str]()
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            large |= {tensor.name} if np.any(np.abs(values) > np.finfo(np.float16).max) else set()
    return [node.name for node in graph.node if large & {*node.input}]


def halved(source: Path, out: Path, _: Path) -> None:
    """Weights and arithmetic in half precision where it holds the weights, inputs and outputs as they were."""
    convert = importlib.import_module("onnxruntime.transformers.float16").convert_float_to_float16
    model = stored(onnx.load(source))
    made = importlib.import_module("onnxruntime.transformers.onnx_model").OnnxModel(
        convert(model, keep_io_types=True, node_block_list=beyond_half(model.graph))
    )
    # The casts of the inputs come last, where ONNX does not allow them.
    made.topological_sort()
    onnx.save(made.model, out)


class Reader:
    """Samples as ``onnxruntime.quantization.CalibrationDataReader`` wants them."""

    def __init__(self, network: Path, calibration: Path) -> None:
        samples = load_samples(calibration, input_specs(onnx.load(network, load_external_data=False).graph))
        chosen = np.arange(min(SEEN, len(samples)))
        self._feeds: Iterator[Mapping[str, Array]] = (b.feed for b in samples.batches(chosen, ROWS))

    def get_next(self) -> Mapping[str, Array] | None:
        """The next feed, None after the last."""
        return next(self._feeds, None)


def quantized(source: Path, out: Path, calibration: Path) -> None:
    """8 bit, as pairs of QuantizeLinear and DequantizeLinear."""
    module = importlib.import_module("onnxruntime.quantization")
    module.CalibrationDataReader.register(Reader)
    module.quantize_static(source, out, Reader(source, calibration), quant_format=module.QuantFormat.QDQ)


def outside(source: Path, out: Path, _: Path) -> None:
    """Weights in a file of their own."""
    beside = out.with_name(f"{out.name}.data")
    # onnx writes behind what is there.
    beside.unlink(missing_ok=True)
    onnx.save(onnx.load(source), out, save_as_external_data=True, location=beside.name, size_threshold=OUTSIDE)


def optimized(level: ort.GraphOptimizationLevel) -> Maker:
    """What ONNX Runtime makes of the network at a level."""

    def make(source: Path, out: Path, _: Path) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(out)
        options.log_severity_level = 4
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return make


def simplified(source: Path, out: Path, _: Path) -> None:
    """By onnxsim."""
    made, checked = importlib.import_module("onnxsim").simplify(onnx.load(source))
    if not checked:
        raise typer.BadParameter("onnxsim says that its result is wrong")
    onnx.save(made, out)


def slimmed(source: Path, out: Path, _: Path) -> None:
    """By onnxslim."""
    onnx.save(importlib.import_module("onnxslim").slim(onnx.load(source)), out)


VARIANTS: Mapping[str, Maker] = {
    "fp16": halved,
    "qdq": quantized,
    "external": outside,
    "ort-basic": optimized(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    "ort-extended": optimized(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    "onnxsim": simplified,
    "onnxslim": slimmed,
}


def main(
    variant: str, network: Path, out: Path, calibration: Annotated[Path, typer.Option(help="For qdq.")] = Path()
) -> None:
    """Make one variant of a network."""
    if variant not in VARIANTS:
        raise typer.BadParameter(f"one of {', '.join(VARIANTS)}", param_hint="VARIANT")
    VARIANTS[variant](network, out, calibration)


if __name__ == "__main__":
    # A traceback is for whoever reads the last line of it.
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
