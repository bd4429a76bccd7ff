# SPDX-License-Identifier: Apache-2.0
"""Inputs of a bundle's networks for Polygraphy, whose random ones are not valid token ids and timesteps."""

from pathlib import Path

from lamp_trt.benchmarks.verify.network_inputs import Arrays, bundle_ids, seeded_inputs
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.files.output import written


def network_inputs(bundle: Bundle, network: str, prompt: str, seed: int = 0) -> Arrays:
    """Return inputs of the network's graph as it is, hoisted or not. BundleError for an unknown network."""
    record, sizes = bundle.network(network), bundle.manifest.sizes
    return seeded_inputs(record.inputs, sizes, seed, lambda: bundle_ids(bundle, network, ("", prompt)))


def save_inputs(path: Path, inputs: Arrays) -> None:
    """Write one feed of `polygraphy run --load-inputs`. EngineError if Polygraphy is not installed, else
    as `written`."""
    try:
        from polygraphy.json import save_json
    except ModuleNotFoundError as error:
        raise EngineError(
            "Polygraphy is not installed, whose format this is: pip install 'lamp-trt[tensorrt]' or [rtx]."
        ) from error
    with written(path) as (partial,):
        save_json([inputs], str(partial))
