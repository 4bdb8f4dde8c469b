"""Training of condensed networks, without labels; needs the extra `tune` (PyTorch), which nothing else imports."""

from onnx_condense.tune.network import Torched, check_trainable
from onnx_condense.tune.teacher import Lesson, Source, Teacher
from onnx_condense.tune.training import Recipe, Tuned, distil

__all__ = ["Lesson", "Recipe", "Source", "Teacher", "Torched", "Tuned", "check_trainable", "distil"]
