# SPDX-License-Identifier: Apache-2.0
"""Exact checks of what a bundle takes unchanged from checkpoints: constants, tokenizers, weights.

They name the constant, merge or tensor that differs; the checks of networks and loops only notice that one
does.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lamp_trt.benchmarks.verify.checks.check import Check
from lamp_trt.benchmarks.verify.options import VerifyOptions
from lamp_trt.benchmarks.verify.reference.networks import (
    force_zeros_for_empty_prompt,
    published,
    safety_constants,
    scaling_factor,
    scheduler_config,
)
from lamp_trt.engine.bundle.manifest import FirstFrameEntry
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.families import LAMP, SAFETY_CHECKER, component_of
from lamp_trt.engine.precompute import precompute_networks
from lamp_trt.export.checkpoints.files import ComponentFiles, find_component
from lamp_trt.export.convert import converted, tensor_bytes

log = logging.getLogger("lamp_trt")

Bytes = NDArray[np.uint8]

_LISTED = 3
"""Number of differences that a message lists."""

_REBUILD = "the bundle was made from another checkpoint, or changed since: build it again"


def exact_checks(bundle: Bundle, networks: list[str], options: VerifyOptions) -> list[Check]:
    """Compare constants, tokenizers and weights, which must be equal bit for bit."""
    checkpoints = options.checkpoints
    checks = []
    if checkpoints.sd:
        checks += _constants_of_sd(bundle, checkpoints.sd)
    if checkpoints.sdxl and bundle.manifest.first_frame:
        checks += _constants_of_sdxl(bundle, bundle.manifest.first_frame, checkpoints.sdxl)
    for name in networks:
        component = component_of(name)
        if component.tokenizer:
            folder = checkpoints.folder(component.origin) / component.tokenizer.folder
            prompts = [options.prompt, options.negative_prompt or ""]
            checks.append(tokenizer_check(bundle, component.tokenizer.name, folder, prompts))
    for name in networks:
        component = component_of(name)
        for motion in checkpoints.motions_of(component.origin):
            log.info("comparing the weights of %s %s", name, motion)
            files = find_component(checkpoints.folder(component.origin, motion), component.folder)
            checks.append(weights_check(bundle, name, motion, files))
    return checks


def _constants_of_sd(bundle: Bundle, folder: Path) -> list[Check]:
    manifest = bundle.manifest
    checks = [constants_check("scheduler", manifest.scheduler, scheduler_config(folder))]
    if "vae" in manifest.scaling_factors:
        stored, published = ({"vae": f} for f in (manifest.scaling_factors[LAMP.vae], scaling_factor(folder)))
        checks.append(constants_check("scaling_factors", stored, published))
    if manifest.safety is not None and (folder / SAFETY_CHECKER).is_dir():
        kept = dataclasses.asdict(manifest.safety)
        checks.append(constants_check("safety checker", kept, safety_constants(folder)))
    return checks


def _constants_of_sdxl(bundle: Bundle, stored: FirstFrameEntry, folder: Path) -> list[Check]:
    published = {
        "force_zeros_for_empty_prompt": force_zeros_for_empty_prompt(folder),
        "sdxl_vae": scaling_factor(folder),
    }
    kept = {
        "force_zeros_for_empty_prompt": stored.force_zeros_for_empty_prompt,
        "sdxl_vae": bundle.manifest.scaling_factors.get("sdxl_vae", published["sdxl_vae"]),
    }
    return [
        constants_check("sdxl scheduler", stored.scheduler, scheduler_config(folder)),
        constants_check("sdxl settings", kept, published),
    ]


def constants_check(name: str, stored: Mapping[str, Any], published: Mapping[str, Any]) -> Check:
    """Compare values in bundle.json with the checkpoint's; `name` says which of them."""
    differing = [
        f"{key} is {_shown(stored, key)} in bundle.json and {_shown(published, key)} in the checkpoint"
        for key in sorted(stored.keys() | published.keys())
        if _plain(stored.get(key, _ABSENT)) != _plain(published.get(key, _ABSENT))
    ]
    return Check("constants", name, measured={"values": len(published)}, problem=_listed(differing, _REBUILD))


_ABSENT = object()


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


def _plain(value: Any) -> Any:
    """Return the value with lists (JSON's) in place of tuples (the manifest's)."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


TEXTS = (
    "",
    "a horse runs on the road",
    "A  Firework, exploding!! in the night-sky; it's 2024's best",
    "ünïcödé 馬が走る 🐎 <|endoftext|> mid-text",
    "horse " * 90,
)
"""Texts with cases, spaces, contractions, digits, other scripts, a special token inside, and one that is
too long."""


def tokenizer_check(bundle: Bundle, name: str, folder: Path, prompts: Iterable[str]) -> Check:
    """Compare the bundle's tokenizer with transformers' of the checkpoint: vocabulary, merges, and ids of
    texts.

    The texts are `prompts`, TEXTS and every word of the vocabulary. Swapped merges may show in none of them,
    hence the comparison of the lists.
    """
    from transformers import CLIPTokenizer as Published

    from lamp_trt.runtime.media.tokenizer import load_tokenizer

    ours = load_tokenizer(bundle.tokenizer_folder(name), bundle.manifest.sizes["tokens"])
    theirs = published(Published, folder)
    our_model, their_model = (
        json.loads(backend.to_str())["model"] for backend in (ours.backend, theirs.backend_tokenizer)
    )
    where = bundle.manifest.tokenizers[name]["folder"]
    differing = [
        f"merge {rank} of {where} is {' '.join(our)!r}, in the checkpoint {' '.join(their)!r}"
        for rank, (our, their) in enumerate(zip(our_model["merges"], their_model["merges"], strict=False), 1)
        if our != their
    ]
    if len(our_model["merges"]) != len(their_model["merges"]):
        differing.append(f"{where} has {len(our_model['merges'])} merges, not {len(their_model['merges'])}")
    for token in sorted(our_model["vocab"].keys() | their_model["vocab"].keys()):
        our_id, their_id = our_model["vocab"].get(token), their_model["vocab"].get(token)
        if our_id != their_id:
            differing.append(f"token {token!r} of {where} is {our_id}, in the checkpoint {their_id}")
    words = [
        token.removesuffix("</w>")
        for token in their_model["vocab"]
        if token.endswith("</w>") and token.isascii()
    ]
    texts = [*prompts, *TEXTS, *words]
    our_ids = np.concatenate([ours(text).input_ids for text in texts])
    their_ids = np.asarray(
        theirs(
            texts,
            padding="max_length",
            max_length=ours.max_length,
            truncation=True,
            return_tensors="np",
        ).input_ids
    )
    differing += [
        f"the ids of {text!r} differ from transformers'"
        for text, same in zip(texts, (our_ids == their_ids).all(axis=1), strict=True)
        if not same
    ]
    return Check("tokenizer", name, measured={"texts": len(texts)}, problem=_listed(differing, _REBUILD))


@dataclass(frozen=True)
class Place:
    """Place of a tensor's bytes in the bundle."""

    file: str
    offset: int
    length: int


def graph_places(bundle: Bundle, network: str) -> dict[str, Place]:
    """Return the place of each weight that the graph of `network` states."""
    import onnx

    model = onnx.load(bundle.graph_path(network), load_external_data=False)
    places = {}
    for initializer in model.graph.initializer:
        entries = {entry.key: entry.value for entry in initializer.external_data}
        if entries:
            offset, length = int(entries["offset"]), int(entries["length"])
            places[initializer.name] = Place(entries["location"], offset, length)
    return places


def motion_places(bundle: Bundle, motion: str) -> dict[str, Place]:
    """Return the place of each tensor of a motion."""
    path = bundle.motion_path(motion)
    file = path.relative_to(bundle.path).as_posix()
    tensors = read_weight_file(path).tensors
    return {name: Place(file, ref.offset, ref.length) for name, ref in tensors.items()}


@dataclass(frozen=True)
class _Difference:
    name: str
    file: str
    stored: str
    """Digest of the bytes in the bundle; `expected`: of those in the checkpoint."""
    expected: str
    how: str


def weights_check(bundle: Bundle, network: str, motion: str, files: ComponentFiles) -> Check:
    """Compare the bytes that `network` and its precompute networks read (the UNet's with `motion`) with the
    tensors of the checkpoint.

    Tensors of the checkpoint without a place (another network's) are ignored.
    """
    places = graph_places(bundle, network)
    for name in precompute_networks(bundle.manifest, network):
        places |= graph_places(bundle, name)
    if motion:
        places |= motion_places(bundle, motion)
    precision = bundle.network(network).precision
    maps = {
        file: np.memmap(bundle.path_of(file), np.uint8, "r") for file in {p.file for p in places.values()}
    }
    missing = dict(places)
    differences = []
    for tensor_name, tensor in converted(files, precision):
        place = missing.pop(tensor_name, None)
        if place is None:
            continue
        expected = np.frombuffer(tensor_bytes(tensor), np.uint8)
        stored = maps[place.file][place.offset : place.offset + place.length]
        if not np.array_equal(stored, expected):
            how = _how(stored, expected, tensor.dtype)
            differences.append(_Difference(tensor_name, place.file, _digest(stored), _digest(expected), how))
    owners = {d.expected: d.name for d in differences}
    differing = [
        f"{d.name} in {d.file} "
        + (f"holds the values of {owners[d.stored]}" if d.stored in owners else d.how)
        for d in differences
    ]
    differing += [f"{tensor} in {place.file} is not in the checkpoint" for tensor, place in missing.items()]
    measured = {"tensors": len(places), "bytes": sum(place.length for place in places.values())}
    return Check("weights", network, motion, measured, problem=_listed(differing, _REBUILD))


def _how(stored: Bytes, expected: Bytes, dtype: torch.dtype) -> str:
    """Say how a tensor's bytes differ from the expected ones."""
    if stored.size != expected.size:
        return f"has {stored.size} bytes, expected {expected.size}"
    ours, theirs = (
        torch.from_numpy(np.array(raw)).view(dtype).double().numpy() for raw in (stored, expected)
    )
    count = f"{int((ours != theirs).sum())} of {ours.size} values differ"
    if np.array_equal(np.sort(ours), np.sort(theirs)):
        return f"holds the right values in another order, {count}"
    return f"is wrong: {count}, by up to {np.abs(ours - theirs).max():.2g}"


def _digest(raw: Bytes) -> str:
    return hashlib.sha256(raw.data).hexdigest()


def _listed(differing: list[str], cause: str) -> str:
    """Return the text of a problem from the differences, "" if there are none."""
    if not differing:
        return ""
    more = f" (and {len(differing) - _LISTED} more)" if len(differing) > _LISTED else ""
    return f"{'; '.join(differing[:_LISTED])}{more}: {cause}"
