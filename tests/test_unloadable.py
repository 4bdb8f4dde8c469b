"""What users are told of networks that ONNX Runtime does not take."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
from mlps import mlp
from onnx import helper

from onnx_condense.errors import ModelError
from onnx_condense.runtime import Runtime, first_line


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as caught:
        Runtime(threads=1).session(model)
    return caught.value.text


def test_an_opset_to_come() -> None:
    model = mlp()
    model.opset_import[0].version = 99
    text = refusal(model)
    start = (
        f"ONNX Runtime {onnxruntime.__version__} does not load the network, which has to run there to be condensed: "
    )
    assert text.startswith(start)
    assert "Opset 99 is under development" in text
    for inside in ("[ONNXRuntimeError]", "onnxruntime_src", "std::"):
        assert inside not in text


def test_an_op_that_is_not_there() -> None:
    model = mlp()
    model.graph.node[0].op_type, model.graph.node[0].domain = "Fancy", "my.ops"
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    assert refusal(model).endswith("my.ops:Fancy(-1) is not a registered function/op")


@pytest.mark.parametrize("text", ["no number: [ONNXRuntimeError] : 1 : FAIL : x", "ratio 3:2 (of a) Bar", "", "(a) B"])
def test_other_words_are_left(text: str) -> None:
    assert first_line(ValueError(text)) == (text or "ValueError")
