"""Attention in the forms that exporters write, with values of which some are multiples of others."""

from __future__ import annotations

import numpy as np
import onnx
from builders import feed_for, outputs, text_model
from onnx import helper

F = np.float32
INTO, HEADS, SIZE = 6, 2, 4
WIDE = HEADS * SIZE
HEAD = '<ir_version: 9, opset_import: ["" : 17]>'
OLD = HEAD.replace("17", "11")

NUMBERS = {f"k{n}": np.array([n]) for n in (0, 1, 2, 3, 4, 8)} | {f"i{n}": np.array(n) for n in (0, 1, 2, -1)}
NUMBERS |= {"m1": np.array([-1]), "m2": np.array([-2]), "far": np.array([2**63 - 1]), "ones": np.ones(3, np.int64)}
LISTS = {
    "grid": [0, 0, 3, HEADS, SIZE], "by_head": [0, 0, HEADS, 3, SIZE], "rest": [0, 0, 3, HEADS, -1],
    "flat": [0, 0, 3, WIDE], "heads": [0, 0, HEADS, SIZE], "heads_rest": [0, -1, HEADS, SIZE],
    "heads_batch": [-1, 5, HEADS, SIZE], "whole": [0, 0, WIDE], "whole_rest": [0, -1, WIDE],
    "whole_batch": [-1, 5, WIDE], "whole_last": [0, 0, -1], "stacked": [0, -1, SIZE], "rows": [-1, WIDE],
    "two": [0, 0, 2, HEADS, SIZE], "mixed": [0, 0, 3 * HEADS, SIZE],
}  # fmt: skip
SCORES = """t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t) e = Mul(s, half) p = Softmax<axis = -1>(e)
o = MatMul(p, v) m = Transpose<perm = [0, 2, 1, 3]>(o) """
BOTH = "sx = Shape(x) b = Gather<axis = 0>(sx, k0) n = Gather<axis = 0>(sx, k1) "
LINE = "z = MatMul(x, w) l = Add(z, c) "
GATHERED = "q = Gather<axis = 0>(u, i0) k = Gather<axis = 0>(u, i1) v = Gather<axis = 0>(u, i2) "
SQUEEZED = "q = Squeeze(a0, k0) k = Squeeze(a1, k0) v = Squeeze(a2, k0) "
TURNED = "u = Transpose<perm = [2, 0, 3, 1, 4]>(g) "
LAST = "f = Reshape(m, whole) y = MatMul(f, w_out)"

# From a line l that holds queries, keys and values to q, k and v.
JOINED = {
    "gathered": "g = Reshape(l, grid) " + TURNED + GATHERED,
    "gathered from the end": "g = Reshape(l, grid) " + TURNED + GATHERED.replace("i2", "im1"),
    "a list that leaves one size open": "g = Reshape(l, rest) " + TURNED + GATHERED,
    "split": "g = Reshape(l, grid) " + TURNED + "a0, a1, a2 = Split<axis = 0>(u) " + SQUEEZED,
    "split by a list": "g = Reshape(l, grid) " + TURNED + "a0, a1, a2 = Split<axis = 0>(u, ones) " + SQUEEZED,
    "sliced": "g = Reshape(l, grid) " + TURNED + """a0 = Slice(u, k0, k1) a1 = Slice(u, k1, k2, k0)
        a2 = Slice(u, m1, far, k0, k1) """ + SQUEEZED,
    "gathered as lists": "g = Reshape(l, grid) " + TURNED + """a0 = Gather<axis = 0>(u, k0) a1 = Gather<axis = 0>(u, k1)
        a2 = Gather<axis = 0>(u, k2) """ + SQUEEZED,
    "gathered before they are moved": """g = Reshape(l, grid) a0 = Gather<axis = 2>(g, i0) a1 = Gather<axis = 2>(g, i1)
        a2 = Gather<axis = 2>(g, i2) q = Transpose<perm = [0, 2, 1, 3]>(a0) k = Transpose<perm = [0, 2, 1, 3]>(a1)
        v = Transpose<perm = [0, 2, 1, 3]>(a2) """,
    "by head": "g = Reshape(l, by_head) u = Transpose<perm = [3, 0, 2, 1, 4]>(g) " + GATHERED,
    "computed": BOTH + "at = Concat<axis = 0>(b, n, k3, k2, k4) g = Reshape(l, at) " + TURNED + GATHERED,
    "computed from the line": """sl = Shape(l) two = Slice(sl, k0, k2) at = Concat<axis = 0>(two, k3, k2, k4)
        g = Reshape(l, at) """ + TURNED + GATHERED,
    "laid out twice": """g = Reshape(l, flat) gx = Unsqueeze(g, k0) gt = Transpose<perm = [3, 1, 2, 0, 4]>(gx)
        u = Squeeze(gt, m2) a0 = Gather<axis = 0>(u, i0) a1 = Gather<axis = 0>(u, i1) a2 = Gather<axis = 0>(u, i2)
        h0 = Reshape(a0, heads) h1 = Reshape(a1, heads) h2 = Reshape(a2, heads) q = Transpose<perm = [0, 2, 1, 3]>(h0)
        k = Transpose<perm = [0, 2, 1, 3]>(h1) v = Transpose<perm = [0, 2, 1, 3]>(h2) """,
}  # fmt: skip


def joined(form: str, merge: str = LAST) -> str:
    return LINE + JOINED[form] + SCORES + merge


def apart(heads: str, merge: str, *, lists: str = "", each: str = "") -> str:
    """One layer each for queries, keys and values; * stands for the letter of each."""
    layer = "z* = MatMul(x, w_*) l* = Add(z*, c_*) " + each
    layer += f"h* = Reshape(l*, {heads}) * = Transpose<perm = [0, 2, 1, 3]>(h*) "
    return lists + "".join(layer.replace("*", i) for i in "qkv") + SCORES + f"{merge} y = MatMul(f, w_out)"


# PyTorch's own layer: positions come first, and heads are merged with the batch.
FIRST = """g = Reshape(l, flat) gx = Unsqueeze(g, k0) gt = Transpose<perm = [3, 1, 2, 0, 4]>(gx) u = Squeeze(gt, m2)
a0 = Gather<axis = 0>(u, i0) a1 = Gather<axis = 0>(u, i1) a2 = Gather<axis = 0>(u, i2) """
STACKED = """h0 = Reshape(a0, stacked) h1 = Reshape(a1, stacked) h2 = Reshape(a2, stacked)
q = Transpose<perm = [1, 0, 2]>(h0) t = Transpose<perm = [1, 2, 0]>(h1) v = Transpose<perm = [1, 0, 2]>(h2)
s = MatMul(q, t) e = Mul(s, half) p = Softmax<axis = -1>(e) o = MatMul(p, v) m = Transpose<perm = [1, 0, 2]>(o) """
ROWS = "f = Reshape(m, rows) yf = MatMul(f, w_out) ay = Concat<axis = 0>(b, n, k4) y = Reshape(yf, ay)"
COUNTED = "bh = Mul(n, k2) stacked = Concat<axis = 0>(b, bh, k4) "
SEPARATE = {
    "stored": apart("heads", "f = Reshape(m, whole)"),
    "the rest is positions": apart("heads_rest", "f = Reshape(m, whole_rest)"),
    "the rest is the batch": apart("heads_batch", "f = Reshape(m, whole_batch)"),
    "the rest is the width": apart("heads", "f = Reshape(m, whole_last)"),
    "computed": apart(
        "ah",
        "aw = Concat<axis = 0>(b, n, k8) f = Reshape(m, aw)",
        lists=BOTH + "ah = Concat<axis = 0>(b, n, k2, k4) ",
    ),
    "of its own sizes": apart(
        "at_*",
        "sm = Shape(m) sf = Slice(sm, k0, k2) aw = Concat<axis = 0>(sf, k8) f = Reshape(m, aw)",
        each="sl* = Shape(l*) sn* = Slice(sl*, k0, k2) at_* = Concat<axis = 0>(sn*, k2, k4) ",
    ),
}


def network(middle: str, head: str = HEAD, noise: float | None = 0.0) -> onnx.ModelProto:
    """Attention on 6 features, 2 heads of size 4. Of every head's 4 values 2 are multiples of others.

    noise: added to all weights; None: nothing is planted.
    """
    rng = np.random.default_rng(7)
    full, bias = rng.standard_normal((INTO, 3, HEADS, SIZE)), rng.standard_normal((3, HEADS, SIZE))
    for a in (full[:, 2], bias[2]) if noise is not None else ():
        a[..., 1], a[..., 3] = 2 * a[..., 0], -a[..., 2] / 2
    full += (noise or 0.0) * rng.standard_normal(full.shape)
    order = (0, 2, 1, 3) if "by_head" in middle else (0, 1, 2, 3)
    stored = NUMBERS | {k: np.array(v) for k, v in LISTS.items()} | {
        "im1": np.array(-1), "half": np.array(0.5, F), "w": full.transpose(order).reshape(INTO, -1).astype(F),
        "c": bias[None].transpose(order).reshape(-1).astype(F), "w_out": rng.standard_normal((WIDE, 4)).astype(F),
    }  # fmt: skip
    for at, name in enumerate("qkv"):
        stored |= {f"w_{name}": full[:, at].reshape(INTO, -1).astype(F), f"c_{name}": bias[at].reshape(-1).astype(F)}
    tokens = "5" if "batch" in middle else "T"
    text = f"{head} g (float[B,{tokens},{INTO}] x) => (float[B,{tokens},4] y) {{ {middle} }}"
    nodes = onnx.parser.parse_model(text).graph.node
    read = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    return text_model(text, {k: v for k, v in stored.items() if k in read})


def seen(proto: onnx.ModelProto, name: str, rank: int = 4) -> onnx.ModelProto:
    """A network with one more output."""
    proto.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank))
    return proto


def assert_bits(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for rows, seed in ((2, 1), (5, 2)):
        feed = feed_for(before, rows, seed)
        for a, b in zip(outputs(before, feed), outputs(after, feed), strict=True):
            np.testing.assert_array_equal(b, a)
