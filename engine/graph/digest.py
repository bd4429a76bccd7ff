# SPDX-License-Identifier: Apache-2.0
"""Digest of a network's graph without its weights: part of the key of every engine compiled from it."""

import hashlib


def graph_digest(graph: bytes) -> str:
    """sha256 of an ONNX file's graph without the locations of its weights and without metadata.

    It is equal for all motions and checkpoints of one architecture, shape and precision.
    """
    import onnx

    model = onnx.load_from_string(graph)
    del model.metadata_props[:]
    for initializer in model.graph.initializer:
        del initializer.external_data[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
