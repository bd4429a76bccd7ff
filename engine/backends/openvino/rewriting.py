# SPDX-License-Identifier: Apache-2.0
"""What rewritings of an ov.Model share."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lamp_trt.engine.backends.openvino.library import import_openvino


def replace_nodes(model: Any, is_meant: Callable[[Any], bool], equal: Callable[[Any], Any]) -> int:
    """Put `equal` of a node, under its name, in the place of each node that `is_meant`; returns how many."""
    nodes = [node for node in model.get_ordered_ops() if is_meant(node)]
    for node in nodes:
        other = equal(node)
        other.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(other.output(0))
    return len(nodes)


def integers(*values: int) -> Any:
    """A constant of int64, as shapes and axes are given."""
    return import_openvino().opset13.constant(np.array(values, np.int64))
