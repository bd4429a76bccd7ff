# SPDX-License-Identifier: Apache-2.0
"""The inputs of a UNet other than the sample, at each step.

In a bundle with hoisted networks, these compute UNet inputs from the plain conditions (text embeddings,
timestep). Their outputs are matched to the UNet's inputs by name, see engine/precompute.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.backends.contract import Engine
from lamp_trt.engine.errors import EngineError

Array = NDArray[Any]
Arrays = Mapping[str, Array]


def conditions_by_step(
    unet: Engine, precompute: Sequence[Engine], conditions: Arrays, timesteps: Iterable[int | np.integer[Any]]
) -> Iterator[Arrays]:
    """Yield for each of `timesteps` the arrays of the UNet's inputs except `sample`, by name.

    precompute   engines of the networks that compute UNet inputs, empty for a plain UNet. Those that take
                 `timestep` run at each step, the others once
    conditions   the plain conditions of the prompt by name, such as encoder_hidden_states
    Raises EngineError if an input of the UNet is missing, or an engine fails.
    """
    at_each_step = [engine for engine in precompute if "timestep" in _names(engine)]
    fixed = dict(conditions)
    for engine in precompute:
        if engine not in at_each_step:
            fixed |= _run(engine, fixed)
    for timestep in timesteps:
        arrays = {**fixed, "timestep": np.array([timestep], np.float32)}
        for engine in at_each_step:
            arrays |= _run(engine, arrays)
        yield _taken(unet, arrays)


def _run(engine: Engine, arrays: Arrays) -> Arrays:
    return engine.run(_taken(engine, arrays))


def _taken(engine: Engine, arrays: Arrays) -> dict[str, Array]:
    names = _names(engine)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise EngineError(
            f"a UNet takes {missing[0]}, which no network of the bundle computes: its networks do not belong "
            "together. Build them again."
        )
    return {name: arrays[name] for name in names}


def _names(engine: Engine) -> list[str]:
    return [tensor.name for tensor in engine.inputs if tensor.name != "sample"]
