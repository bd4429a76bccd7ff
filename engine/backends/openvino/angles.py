# SPDX-License-Identifier: Apache-2.0
"""Sines and cosines of a timestep, apart from a network that is computed in bf16.

OpenVINO's bf16 rounds what enters them too: of timestep 501 it makes 502, which doubles a UNet's distance to
fp32. PyTorch computes them in fp32 whatever the network is in.
"""

from typing import Any

from lamp_trt.engine.backends.openvino.library import import_openvino


def take_angles_out(model: Any) -> Any | None:
    """An ov.Model of the sines and cosines of `model`, which then takes those as inputs, under their names,
    and no longer what they are made from. None if it has none."""
    ov = import_openvino()
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() in ("Sin", "Cos")]
    if not nodes:
        return None
    copies = {node.get_friendly_name(): node for node in model.clone().get_ops()}
    apart = [copies[node.get_friendly_name()] for node in nodes]
    for node, copy in zip(nodes, apart, strict=True):
        name = node.get_friendly_name()
        copy.output(0).set_names({name})
        taken = ov.op.Parameter(node.get_output_element_type(0), node.get_output_shape(0))
        taken.set_friendly_name(name)
        taken.output(0).set_names({name})
        node.output(0).replace(taken.output(0))
        model.add_parameters([taken])
    sources = {n: node for n, node in _above(apart).items() if node.get_type_name() == "Parameter"}
    needed = _above(model.get_results())
    for parameter in model.get_parameters():
        if parameter.get_friendly_name() in sources.keys() - needed.keys():
            model.remove_parameter(parameter)
    return ov.Model([node.output(0) for node in apart], list(sources.values()))


def _above(nodes: Any) -> dict[str, Any]:
    """`nodes` and all that they are computed from, by name."""
    found: dict[str, Any] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in found:
            found[node.get_friendly_name()] = node
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    return found
