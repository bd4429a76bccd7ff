# SPDX-License-Identifier: Apache-2.0
"""Seeded inputs of any network, similar to those in a video."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import component_of
from lamp_trt.engine.networks import IOTensor
from lamp_trt.runtime.first_frame import prompt_ids
from lamp_trt.runtime.media.tokenizer import load_tokenizer

Arrays = dict[str, NDArray[Any]]

TIMESTEP = 501
"""Timestep of the UNets' inputs, in the middle; their work is the same at every other."""


def seeded_inputs(
    inputs: Sequence[IOTensor],
    sizes: Mapping[str, int],
    seed: int,
    input_ids: Callable[[], NDArray[np.int64]] | None = None,
) -> Arrays:
    """Return arrays by name: TIMESTEP, an image's range, else normal numbers. Both halves of `sample` are
    equal, as with guidance.

    sizes: of the bundle. input_ids: returns a text encoder's token ids (batch, tokens); not used by other
    networks.
    """
    rng = np.random.default_rng(seed)

    def array(tensor: IOTensor) -> NDArray[Any]:
        match tensor.name:
            case "input_ids":
                assert input_ids is not None
                return input_ids()
            case "timestep":
                return np.full(tensor.shape, TIMESTEP, tensor.dtype)
            case "time_ids":
                size = [sizes["first_frame_height"], sizes["first_frame_width"]]
                return np.tile(np.array([*size, 0, 0, *size], tensor.dtype), (tensor.shape[0], 1))
            case "sample":
                half = rng.standard_normal((1, *tensor.shape[1:]), np.float32).astype(tensor.dtype)
                return np.repeat(half, tensor.shape[0], axis=0)
            case "image":
                return rng.uniform(-1, 1, tensor.shape).astype(tensor.dtype)
        return rng.standard_normal(tensor.shape, np.float32).astype(tensor.dtype)

    return {tensor.name: array(tensor) for tensor in inputs}


def bundle_ids(bundle: Bundle, network: str, prompts: tuple[str, str]) -> NDArray[np.int64]:
    """Return token ids (2, tokens) for a text encoder, by the bundle's own tokenizer."""
    tokenizer = component_of(network).tokenizer
    assert tokenizer is not None
    folder = bundle.tokenizer_folder(tokenizer.name)
    return prompt_ids(load_tokenizer(folder, bundle.manifest.sizes["tokens"]), prompts)
