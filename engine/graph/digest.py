# SPDX-License-Identifier: Apache-2.0
"""Which network a graph is, whatever its weights: part of the key of everything that is compiled from it."""

import hashlib


def graph_digest(graph: bytes) -> str:
    """sha256 of an ONNX file's graph without the places of its weights and without metadata.

    So it is the same for every motion and checkpoint of one architecture, shape and precision.
    """
    import onnx

    model = onnx.load_from_string(graph)
    del model.metadata_props[:]
    for initializer in model.graph.initializer:
        del initializer.external_data[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
