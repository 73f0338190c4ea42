"""ONNX Runtime's 4-bit linear layer: one MatMulNBits node, groups of 128 with zero points."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor


def model(n: int, k: int) -> Callable[[int], bytes]:
    """What makes the model for an accuracy level: 0 multiplies in float32, 4 in int8."""
    groups = -(-k // 128)
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.integers(0, 256, (n, groups, 64), dtype=np.uint8), "w"),
        numpy_helper.from_array(random.random(n * groups, dtype=np.float32), "s"),
        numpy_helper.from_array(random.integers(0, 256, n * ((groups + 1) // 2), dtype=np.uint8), "z"),
    ]

    def at(level: int) -> bytes:
        node = helper.make_node(
            "MatMulNBits", ["x", "w", "s", "z"], ["y"], domain="com.microsoft",
            K=k, N=n, bits=4, block_size=128, accuracy_level=level,
        )  # fmt: skip
        graph = helper.make_graph(
            [node], "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, k])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, n])],
            weights,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()

    return at


def session(graph: bytes, threads: int) -> Callable[[Tensor], object]:
    """x [T, k] float32 -> [T, n]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Between calls its threads would spin on the cores that the next contender needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    run = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
    return lambda x: run.run(None, {"x": x.numpy()})
