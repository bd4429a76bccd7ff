# SPDX-License-Identifier: Apache-2.0
"""What a UNet is given at each step beside the sample, whatever form the bundle's UNet has.

Networks may stand between the plain conditions (text embeddings, timestep) and the UNet's inputs: what they
give out is found by the names of those inputs, see engine/precompute.py.
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
    """For each of `timesteps` the arrays of the UNet's inputs but `sample`, by name.

    precompute       the engines of the networks beside the UNet, none for a plain one. Those that take `timestep`
                 run at each step, the others once
    conditions   the plain conditions of the prompt by name, such as encoder_hidden_states
    Raises EngineError if the UNet takes what nothing gives, or an engine fails.
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
            f"a UNet takes {missing[0]}, which no network of the bundle gives: its networks do not belong "
            "together. Build them anew."
        )
    return {name: arrays[name] for name in names}


def _names(engine: Engine) -> list[str]:
    return [tensor.name for tensor in engine.inputs if tensor.name != "sample"]
