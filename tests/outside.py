"""Networks whose weights lie in a file beside them."""

from __future__ import annotations

from pathlib import Path

import onnx
from mlps import mlp, plant_copies
from onnx import TensorProto
from typer.testing import CliRunner

from onnx_condense.cli import app


def dense() -> onnx.ModelProto:
    """W1 has more than 1 KiB before and after its copies go."""
    return plant_copies(mlp((3, 24, 20, 2)), 0, 10)


def put(proto: onnx.ModelProto, folder: Path, name: str = "net.onnx", threshold: int = 0) -> Path:
    """Write a network with all weights of `threshold` bytes or more in w.bin."""
    folder.mkdir(exist_ok=True)
    onnx.save(proto, folder / name, save_as_external_data=True, location="w.bin", size_threshold=threshold)
    return folder / name


def names(folder: Path) -> set[str]:
    """What lies in a folder."""
    return {p.name for p in folder.iterdir()}


def cli(*arguments: object) -> tuple[int, str]:
    """Exit code and stderr of the command."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    return result.exit_code, result.stderr


def refer(tensor: TensorProto, location: str, offset: object = None, length: object = None) -> TensorProto:
    """Let a tensor lie in that file; offset and length in bytes may be left out."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor
