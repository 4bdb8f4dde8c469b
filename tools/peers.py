"""Other tools that remove channels, brought to a size asked for: the process that bench_peers.py starts for one run.

    pip install onnxsim==0.8.1 torch-pruning==1.6.1 onnx2torch==1.5.15

* ``structured``: onnxsim, channels with the smallest L2 norm of weights go;
* ``wanda``: onnxsim, norm of weights times norm of activations on calibration inputs;
* ``wanda-refit``: the same, then its closed-form refit of dense layers on the same inputs;
* ``torch-pruning``: by way of onnx2torch and PyTorch's TorchScript exporter, smallest group L2 norm goes.

All of them take one ratio for the whole network, which is bisected. All see what ``onnxsim.simplify`` makes of the
network, because they want normalisations folded. onnx2torch imports torchvision for two ops of detection networks;
where it is missing an empty module stands in for it, so that such networks fail and all others load. Gelu, which
onnx2torch does not know, is added to it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from onnx_condense.cost import count_parameters
from onnx_condense.data import InputSpec, Samples, input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.runtime import Feed, limited_threads

PINS = {"onnxsim": "0.8.1", "torch-pruning": "1.6.1", "onnx2torch": "1.5.15"}
# Halvings of the ratio, and its upper end: all of these tools leave a layer one channel.
HALVINGS, MOST = 12, 0.999
# Samples per feed. Nothing depends on it but memory.
ROWS = 64

# The network that a ratio gives.
Prune = Callable[[float], onnx.ModelProto]


def closest(size: Callable[[float], int], target: float, halvings: int = HALVINGS, most: float = MOST) -> float:
    """The ratio that comes closest to the target from above, so that nothing is held against a tool.

    Args:
        size: parameters by ratio; falling, but tools may leave a layer alone of which nothing would be left.
        target: parameters wanted.
        halvings: how often the interval is halved.
        most: the largest ratio.
    """
    low, high = 0.0, most
    best, smallest = 0.0, size(0.0)
    for _ in range(halvings):
        middle = (low + high) / 2
        found = size(middle)
        low, high = (middle, high) if found >= target else (low, middle)
        if target <= found < smallest:
            best, smallest = middle, found
    return best


def check_pins() -> None:
    """See to it that the versions are those that the table names.

    Raises:
        ImportError: a version differs, or a package is missing.
    """
    for name, version in PINS.items():
        found = importlib.metadata.version(name)
        if found != version:
            raise ImportError(f"{name} {found} is installed, not {version}")


def simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What onnxsim makes of a network before anything is removed, written as the others expect it."""
    found: onnx.ModelProto = importlib.import_module("onnxsim").simplify(proto)[0]
    graph, nodes = found.graph, []
    for node in graph.node:
        # They look for weights among the initializers, and take an omitted last input for a computed one.
        values = [a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"]
        for value in values:
            graph.initializer.append(value)
            graph.initializer[-1].name = node.output[0]
        while node.input and not node.input[-1]:
            node.input.pop()
        nodes += [] if values else [node]
    # Shapes noted down for what is an initializer now would be out of date once it is cut.
    weights = {t.name for t in graph.initializer}
    shapes = [value for value in graph.value_info if value.name not in weights]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.value_info.extend(shapes)
    return found


def by_onnxsim(proto: onnx.ModelProto, kind: str, feeds: list[dict[str, Any]], target: float) -> onnx.ModelProto | None:
    """The closest network by one of onnxsim's three ways, None if nothing goes.

    The widths follow from the ratio alone, whatever ranks the channels.
    """
    onnxsim = importlib.import_module("onnxsim")

    def weighed(ratio: float, data: list[dict[str, Any]]) -> onnx.ModelProto:
        found: onnx.ModelProto = onnxsim.apply_structured_wanda_pruning(proto, calibration_data=data, sparsity=ratio)
        return found

    by_weights = functools.partial(onnxsim.apply_structured_pruning, proto)
    cheap: Prune = (lambda s: by_weights(sparsity=s)) if kind == "structured" else (lambda s: weighed(s, feeds[:1]))
    ratio = closest(lambda s: count_parameters(cheap(s)), target)
    if not ratio or kind == "structured":
        return cheap(ratio) if ratio else None
    pruned = weighed(ratio, feeds)
    if kind == "wanda":
        return pruned
    refitted: onnx.ModelProto = onnxsim.apply_pruning_finetune(proto, pruned, calibration_data=feeds, reg_param=1e-6)
    return refitted


# ---- Torch-Pruning ----


class DoesNotLoadError(Exception):
    """PyTorch can't be given the network."""


def load_onnx2torch() -> Any:
    """onnx2torch, without torchvision where there is none, and with Gelu."""
    if importlib.util.find_spec("torchvision") is None:
        stand_in, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
        vars(ops)["roi_align"] = None
        sys.modules |= {"torchvision": stand_in, "torchvision.ops": ops}
    module = importlib.import_module("onnx2torch")
    registry = importlib.import_module("onnx2torch.node_converters.registry")
    common = importlib.import_module("onnx2torch.utils.common")
    torch = importlib.import_module("torch")

    def gelu(node: Any, graph: Any) -> Any:
        del graph
        form = node.attributes.get("approximate", "none")
        mapping = common.onnx_mapping_from_node(node)
        return common.OperationConverterResult(torch.nn.GELU(approximate=form), mapping)

    registry.add_converter("Gelu", version=20)(gelu)
    return module


def loaded(proto: onnx.ModelProto) -> Callable[[], Any]:
    """What makes a PyTorch network of this one.

    Raises:
        DoesNotLoadError: onnx2torch can't.
    """
    onnx2torch = load_onnx2torch()
    try:
        onnx2torch.convert(proto)
    # It has no error of its own: these are what its converters and PyTorch raise on what they do not know.
    except (NotImplementedError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DoesNotLoadError(f"does not load: {type(error).__name__} {error}") from error
    return lambda: onnx2torch.convert(proto).eval()


def last_layers(model: Any) -> list[Any]:
    """The layers that give the outputs: whatever else lies between, their channels are the network's answer."""
    nn = importlib.import_module("torch.nn")
    convolutions = (f"Conv{kind}{rank}d" for kind in ("", "Transpose") for rank in (1, 2, 3))
    kinds = tuple(getattr(nn, name) for name in ("Linear", *convolutions))
    modules, layers = dict(model.named_modules()), []
    todo = [node for node in model.graph.nodes if node.op == "output"]
    seen: set[Any] = set()
    while todo:
        for node in set(todo.pop().all_input_nodes) - seen:
            seen.add(node)
            module = modules.get(node.target) if node.op == "call_module" else None
            if isinstance(module, kinds):
                layers.append(module)
            else:
                todo.append(node)
    return layers


def by_torch(proto: onnx.ModelProto, feed: Feed, target: float, out: Path) -> onnx.ModelProto | None:
    """The closest network by Torch-Pruning, exported to `out`; None if nothing goes."""
    converted = loaded(proto)
    torch, pruning = importlib.import_module("torch"), importlib.import_module("torch_pruning")
    specs = input_specs(proto.graph)
    example = tuple(torch.from_numpy(feed[spec.name]) for spec in specs)

    def pruned(ratio: float) -> Any:
        model = converted()
        if ratio:
            norm, last = pruning.importance.GroupMagnitudeImportance(p=2), last_layers(model)
            pruning.BasePruner(model, example, norm, pruning_ratio=ratio, ignored_layers=last).step()
        return model

    def exported(ratio: float) -> onnx.ModelProto:
        names = {"input_names": [s.name for s in specs], "output_names": [o.name for o in proto.graph.output]}
        opset = max(17, min(20, proto.opset_import[0].version))
        with contextlib.redirect_stdout(sys.stderr):
            torch.onnx.export(
                pruned(ratio), example, out, **names, dynamo=False, opset_version=opset, dynamic_axes=free_axes(specs)
            )
        return onnx.load(out)

    ratio = closest(lambda ratio: count_parameters(exported(ratio)), target)
    return exported(ratio) if ratio else None


def free_axes(specs: tuple[InputSpec, ...]) -> dict[str, dict[int, str]]:
    """The axes of any size, as the exporter wants them."""
    sizes = ((s.name, {i: f"{s.name}_{i}" for i, n in enumerate(s.shape) if not isinstance(n, int)}) for s in specs)
    return {name: axes for name, axes in sizes if axes}


# ---- the process ----


def feeds_of(samples: Samples) -> list[dict[str, Any]]:
    """All samples as a list of feeds, which is what onnxsim takes."""
    return [b.feed for b in samples.batches(np.arange(len(samples)), ROWS)]


def main(
    kind: Annotated[str, typer.Argument(help="structured, wanda, wanda-refit or torch-pruning.")],
    network: Path,
    calibration: Path,
    out: Path,
    share: Annotated[float, typer.Argument(help="Share of the network's parameters to come to.")],
    threads: int = 0,
) -> None:
    """Prune a network to a share of its parameters; prints JSON: the share that it came to, or how that failed."""
    check_pins()
    given = onnx.load(network)
    dense, samples = count_parameters(given), load_samples(calibration, input_specs(given.graph))
    try:
        with limited_threads(threads):
            found = pruned(kind, simplified(given), samples, share * dense, out, threads)
    except DoesNotLoadError as error:
        print(json.dumps({"failed": " ".join(str(error).split())}))
        return
    if found is None:
        print(json.dumps({"failed": "removes nothing"}))
        return
    onnx.save(found, out)
    print(json.dumps({"share": count_parameters(found) / dense}))


def pruned(
    kind: str, proto: onnx.ModelProto, samples: Samples, target: float, out: Path, threads: int
) -> onnx.ModelProto | None:
    """What one of the tools comes to, None if nothing goes."""
    if kind != "torch-pruning":
        return by_onnxsim(proto, kind, feeds_of(samples), target)
    importlib.import_module("torch").set_num_threads(threads or 1)
    feed = next(iter(samples.batches(np.arange(min(2, len(samples))), 2))).feed
    return by_torch(proto, feed, target, out)


if __name__ == "__main__":
    typer.run(main)
