"""Networks that ship with onnx: no crash; nothing in them is redundant, so all come back as they were."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from builders import lossless
from onnx.backend.test.case.node import collect_testcases

from onnx_condense.errors import ModelError
from onnx_condense.network.model import load, serialized

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FILES = sorted(DATA.rglob("*.onnx"))
BLOCKS = 8


def check(proto: onnx.ModelProto) -> None:
    before = serialized(proto)
    try:
        load(proto)
    except ModelError:
        return
    done = lossless(proto)
    assert serialized(proto) == before
    assert serialized(done.proto) == before


def test_the_corpus_is_there() -> None:
    assert len(FILES) > 100


@pytest.mark.parametrize("block", range(BLOCKS))
def test_backend_files(block: int) -> None:
    for path in FILES[block::BLOCKS]:
        check(onnx.load(path))


@pytest.mark.filterwarnings("ignore")  # onnx's own case generators overflow and divide by zero on purpose
@pytest.mark.parametrize("prefix", ["Gemm", "MatMul", "Add", "Dropout", "If", "Gelu", "PRelu", "Where", "Cast", "Loop"])
def test_node_cases(prefix: str) -> None:
    models = [c.model for c in collect_testcases(prefix) if c.model is not None]
    assert models
    for model in models:
        check(model)
