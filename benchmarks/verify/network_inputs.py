# SPDX-License-Identifier: Apache-2.0
"""Seeded arrays for any network's inputs, of the kind that the network meets in a video."""

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
"""The UNets are run at one time, the middle; their work is the same at every other."""


def seeded_inputs(
    inputs: Sequence[IOTensor],
    sizes: Mapping[str, int],
    seed: int,
    input_ids: Callable[[], NDArray[np.int64]] | None = None,
) -> Arrays:
    """Arrays by name: TIMESTEP, an image's range, else normal numbers; the same sample in both halves, as
    guidance has it.

    sizes: of the bundle. input_ids: gives a text encoder's token ids (batch, tokens); others need none.
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
    """(2, tokens) for a text encoder, by the bundle's own tokenizer."""
    tokenizer = component_of(network).tokenizer
    assert tokenizer is not None
    folder = bundle.tokenizer_folder(tokenizer.name)
    return prompt_ids(load_tokenizer(folder, bundle.manifest.sizes["tokens"]), prompts)
