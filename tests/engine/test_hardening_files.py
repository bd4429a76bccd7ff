# SPDX-License-Identifier: Apache-2.0
"""Hostile files: whatever is in them, they are read or refused by a LampError, soon and in little memory."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_trt.engine.bundle.journal import Journal
from lamp_trt.engine.bundle.manifest import read_manifest
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.engine.files.strict_json import parse_object
from lamp_trt.export.checkpoints.files import find_component, read_json
from lamp_trt.runtime.jobs import Job, job_from_sidecar, jobs_from_prompts_file
from lamp_trt.runtime.media.image import png_base64
from lamp_trt.runtime.media.tokenizer import load_tokenizer
from tests.fixtures.bundle_cases import FIRST, build
from tests.fixtures.hostile import TEXTS, as_json, mutated, read_or_refused
from tests.fixtures.torture import Tally, no_hang

pytestmark = pytest.mark.torture
FUZZ = settings.get_profile("hardening")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


# --- safetensors ---------------------------------------------------------------------------------------


def safetensors(header: bytes, data: bytes = bytes(64), size: int | None = None) -> bytes:
    return (len(header) if size is None else size).to_bytes(8, "little") + header + data


HEADER = {
    "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b": {"dtype": "F16", "shape": [16], "data_offsets": [32, 64]},
    "__metadata__": {"format": "pt"},
}


@settings(FUZZ)
@given(st.data())
def test_any_safetensors_header_is_read_or_refused(folder: Path, tally: Tally, data: st.DataObject) -> None:
    path = folder / "fuzzed.safetensors"
    header = as_json(mutated(HEADER, data))
    size = data.draw(st.one_of(st.none(), st.integers(0, 2**64 - 1)))
    path.write_bytes(safetensors(header, bytes(data.draw(st.sampled_from([0, 32, 63, 64, 65]))), size))

    def read() -> None:
        for ref in read_weight_file(path).tensors.values():
            assert 0 <= ref.offset <= ref.offset + ref.length <= path.stat().st_size
            assert all(type(axis) is int for axis in ref.shape)
        read_weight_file(path).arrays()

    read_or_refused(read, tally)


@settings(FUZZ)
@given(st.binary(max_size=400))
def test_any_bytes_are_no_weight_file_or_a_sound_one(folder: Path, tally: Tally, content: bytes) -> None:
    (folder / "bytes.safetensors").write_bytes(content)
    read_or_refused(lambda: read_weight_file(folder / "bytes.safetensors"), tally)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b"," + b"9" * 4000 + b'],"data_offsets":[0,64]}}',
        b'{"a":{"dtype":"F32","shape":[' + b"4294967296,4294967296," * 50_000 + b'1],"data_offsets":[0,64]}}',
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[false,64]}}',
        b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},'
        b'"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
        b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[-64,0]}}',
        b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},'
        b'"b":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"' + b"n" * 1_000_000 + b'":1}',
    ],
    ids=["digits", "rank", "zero", "bool", "twice", "negative", "overlap", "arrays", "objects", "name"],
)
def test_headers_that_would_overflow_or_deceive_are_refused(
    header: bytes, tmp_path: Path, tally: Tally
) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(safetensors(header, b"" if b"[0,0]" in header else bytes(64)))
    taken = read_or_refused(lambda: read_weight_file(path), tally)
    assert not taken


def test_a_header_larger_than_any_real_one_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write((90 << 20).to_bytes(8, "little"))
        file.truncate(100 << 20)
    with pytest.raises(CheckpointError, match="its header claims 94371840 bytes"):
        read_weight_file(path)


# --- manifest and journal ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What bundle.json of a small bundle holds."""
    path = tmp_path_factory.mktemp("manifest") / "bundle"
    build(path, FIRST)
    document: dict[str, Any] = json.loads((path / "bundle.json").read_bytes())
    return document


@settings(FUZZ)
@given(st.data())
def test_any_manifest_is_read_or_refused(
    folder: Path, manifest: dict[str, Any], tally: Tally, data: st.DataObject
) -> None:
    document = mutated(manifest, data)
    if isinstance(document, dict) and data.draw(st.booleans()):  # as an attacker would, sign the change
        document = resigned(document)
    (folder / "bundle.json").write_bytes(canonical(document))

    def read() -> None:
        read, content = read_manifest(folder)
        assert read.to_json() == content
        assert all(".." not in path and not path.startswith("/") for path in read.files)

    read_or_refused(read, tally)


def canonical(document: Any) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=2) + "\n").encode("ascii")


def resigned(document: dict[str, Any]) -> dict[str, Any]:
    content = {key: value for key, value in document.items() if key != "content_sha256"}
    return {**content, "content_sha256": hashlib.sha256(canonical(content)).hexdigest()}


@settings(FUZZ)
@given(st.data())
def test_any_journal_is_resumed_from_or_ignored(folder: Path, tally: Tally, data: st.DataObject) -> None:
    line = {"path": "weights/unet.safetensors", "entry": {"size": 3, "sha256": "0" * 64, "key": "k"}}
    lines = [as_json(mutated(line, data)) for _ in range(data.draw(st.integers(1, 3)))]
    (folder / "build.journal").write_bytes(
        b"\n".join(lines) + data.draw(st.sampled_from([b"", b"\n", b"\0"]))
    )

    def read() -> None:
        assert all(".." not in path and not path.startswith("/") for path in Journal(folder).paths)

    assert read_or_refused(read, tally)


@settings(FUZZ)
@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(tally: Tally, content: bytes) -> None:
    read_or_refused(lambda: parse_object(content), tally)


# --- checkpoints' config files -------------------------------------------------------------------------


@settings(FUZZ)
@given(st.data())
def test_any_index_of_shards_names_files_beside_it_or_is_refused(
    folder: Path, tally: Tally, data: st.DataObject
) -> None:
    unet = folder / "sharded"
    unet.mkdir(exist_ok=True)
    (unet / "config.json").write_text("{}")
    (unet / "shard-1.safetensors").write_bytes(b"")
    index = {"weight_map": {"a": "shard-1.safetensors", "b": data.draw(TEXTS)}, "metadata": {}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_bytes(as_json(mutated(index, data)))

    def read() -> None:
        assert {file.parent for file in find_component(unet, "unet").weight_files} == {unet}

    read_or_refused(read, tally)


@pytest.mark.parametrize(
    "content", [b"{" * 10**6, b"[1," * 10**6, b'{"a":' + b"9" * 10**6 + b"}", b"\xff" * 99]
)
def test_json_that_is_deep_or_long_or_binary_is_refused(content: bytes, tmp_path: Path, tally: Tally) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert not read_or_refused(lambda: read_json(tmp_path / "config.json"), tally)


def test_a_config_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(CheckpointError, match="larger than 16 MiB"):
        read_json(tmp_path / "config.json")


# --- tokenizers ----------------------------------------------------------------------------------------


@settings(FUZZ)
@given(st.data())
def test_any_tokenizer_folder_is_loaded_or_refused(
    toy: Path, folder: Path, tally: Tally, data: st.DataObject
) -> None:
    published = toy / "sd" / "tokenizer"
    copy = folder / "tokenizer"
    copy.mkdir(exist_ok=True)
    for file in published.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "tokenizer.json").unlink(missing_ok=True)
    vocab = json.loads((published / "vocab.json").read_text())
    small = {token: vocab[token] for token in list(vocab)[:20]} | {
        token: vocab[token] for token in ("<|startoftext|>", "<|endoftext|>")
    }
    documents = {
        "vocab.json": small,
        "special_tokens_map.json": json.loads((published / "special_tokens_map.json").read_text()),
        "tokenizer_config.json": {
            **json.loads((published / "tokenizer_config.json").read_text()),
            "added_tokens_decoder": {"3": {"content": "!", "lstrip": False, "normalized": True}},
        },
        "tokenizer.json": {
            "model": {"vocab": small, "merges": ["! !"]},
            "added_tokens": [{"id": 3, "content": "!", "special": True}],
        },
    }
    name = data.draw(st.sampled_from(sorted(documents)))
    if name == "special_tokens_map.json":
        config = documents["tokenizer_config.json"]
        del config["added_tokens_decoder"]
        (copy / "tokenizer_config.json").write_bytes(as_json(config))
    if name == "tokenizer.json":
        (copy / "tokenizer_config.json").write_text("{}")
    (copy / name).write_bytes(as_json(mutated(documents[name], data)))

    def read() -> None:
        ids = load_tokenizer(copy)("a horse runs! <|endoftext|>").input_ids
        assert ids.shape == (1, 77)
        assert ids.min() >= 0

    read_or_refused(read, tally)


@settings(FUZZ)
@given(st.binary(max_size=300))
def test_any_merges_file_is_loaded_or_refused(toy: Path, folder: Path, tally: Tally, content: bytes) -> None:
    copy = folder / "merges"
    copy.mkdir(exist_ok=True)
    (copy / "vocab.json").write_bytes((toy / "sd" / "tokenizer" / "vocab.json").read_bytes())
    (copy / "merges.txt").write_bytes(b"#version: 0.2\n" + content)
    read_or_refused(lambda: load_tokenizer(copy)("a horse"), tally)


# --- sidecars and prompt files -------------------------------------------------------------------------

SIDECAR = {
    "prompt": "a horse runs",
    "motion": "horse_run",
    "fps": 8.0,
    "seed": 7,
    "num_inference_steps": 50,
    "guidance_scale": 12.5,
    "negative_prompt": None,
    "adain": "schedule",
    "adain_switch_step": None,
    "preset": "official",
    "histogram": None,
    "bundle": "0" * 64,
    "injected": [],
    "first_frame_png": png_base64(np.zeros((2, 2, 3), np.uint8)),
}


@settings(FUZZ)
@given(st.data())
def test_any_sidecar_is_a_job_or_refused(folder: Path, tally: Tally, data: st.DataObject) -> None:
    path = folder / "clip.mp4.json"
    path.write_bytes(as_json(mutated(SIDECAR, data)))

    def read() -> None:
        job = job_from_sidecar(path)
        assert isinstance(job.prompt, str)

    read_or_refused(read, tally)


@settings(FUZZ)
@given(st.data())
def test_any_line_of_a_prompts_file_is_a_job_or_refused(
    folder: Path, tally: Tally, data: st.DataObject
) -> None:
    path = folder / "prompts.jsonl"
    fields = {"prompt": "a", "motion": "rain", "first_frame": "x.png", "out": "x.mp4", "fps": 8, "seed": 1}
    path.write_bytes(as_json(mutated(fields, data)))
    read_or_refused(lambda: jobs_from_prompts_file(path, Job("")), tally)


def test_a_prompts_file_without_end_is_refused() -> None:
    with no_hang(), pytest.raises(InputError, match="larger than 64 MiB"):
        jobs_from_prompts_file(Path("/dev/zero"), Job(""))


def test_a_sidecar_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "clip.json").open("wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(InputError, match="larger than 64 MiB"):
        job_from_sidecar(tmp_path / "clip.json")
