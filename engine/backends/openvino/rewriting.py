# SPDX-License-Identifier: Apache-2.0
"""What rewritings of an ov.Model share."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lamp_trt.engine.backends.openvino.library import import_openvino


def replace_nodes(model: Any, equal: Callable[[Any], Sequence[Any] | None]) -> int:
    """Put what `equal` gives for a node, an output for each of its outputs, in its place, under its name;
    returns how many nodes were replaced. None: the node stays."""
    count = 0
    for node in model.get_ordered_ops():
        outputs = equal(node)
        if outputs is None:
            continue
        count += 1
        for old, new in zip(node.outputs(), outputs, strict=True):
            suffix = f".{old.get_index()}" if len(outputs) > 1 else ""
            new.get_node().set_friendly_name(node.get_friendly_name() + suffix)
            old.replace(new)
    return count


def integers(*values: int) -> Any:
    """A constant of int64, as shapes and axes are given."""
    return import_openvino().opset13.constant(np.array(values, np.int64))
