# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of every layout in a build: the bundle's ids, what a rebuild leaves, what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.export.build import build_bundle
from lamp_trt.export.recipe import recipe_from_options
from lamp_trt.runtime.media.tokenizer import load_tokenizer
from tests.fixtures.toy import toy_options

PROMPTS = ["", "a horse runs!", "A  FIREWORK <|endoftext|> 馬", "horse " * 90]


@pytest.fixture
def resaved(toy: Path, tmp_path: Path) -> Path:
    """The toy's Stable Diffusion folder with its tokenizer as transformers of today saves it."""
    from transformers import CLIPTokenizer

    copy = tmp_path / "sd"
    shutil.copytree(toy / "sd", copy)
    shutil.rmtree(copy / "tokenizer")
    CLIPTokenizer.from_pretrained(toy / "sd" / "tokenizer").save_pretrained(copy / "tokenizer")
    assert not (copy / "tokenizer" / "vocab.json").exists()
    return copy


def build_text_encoder(sd: Path, toy: Path, out: Path) -> set[str]:
    """The tokenizer's files in the manifest of the bundle that is made."""
    build_bundle(out, toy_options(toy, sd=sd, motions=None, only=("text_encoder",)))
    files = Bundle.open(out, verify="full").manifest.files
    return {path for path in files if path.startswith("tokenizer/")}


def test_a_bundle_of_todays_layout_has_the_published_ids(resaved: Path, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    published = load_tokenizer(toy / "sd" / "tokenizer")
    new = {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    assert build_text_encoder(resaved, toy, out) == new
    old = {f"tokenizer/{path.name}" for path in (toy / "sd" / "tokenizer").iterdir()}
    for sd, files in ((resaved, new), (toy / "sd", old), (resaved, new)):
        assert (
            build_text_encoder(sd, toy, out)
            == files
            == {f"tokenizer/{p.name}" for p in (out / "tokenizer").iterdir()}
        )
        ours = load_tokenizer(Bundle.open(out).tokenizer_folder("tokenizer"))
        for prompt in PROMPTS:
            assert ours(prompt).input_ids.tolist() == published(prompt).input_ids.tolist()


def test_verify_compares_with_todays_layout(resaved: Path, toy: Path, tmp_path: Path) -> None:
    from lamp_trt.benchmarks.verify.checks.bundle import tokenizer_check

    build_text_encoder(resaved, toy, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    for folder in (resaved / "tokenizer", toy / "sd" / "tokenizer"):
        assert tokenizer_check(bundle, "tokenizer", folder, PROMPTS).problem == ""


def test_verify_says_what_transformers_does_not_read(resaved: Path, toy: Path, tmp_path: Path) -> None:
    from lamp_trt.benchmarks.verify.checks.bundle import tokenizer_check

    path = resaved / "tokenizer" / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    build_text_encoder(resaved, toy, tmp_path / "bundle")
    with pytest.raises(CheckpointError, match=r"cannot be read by CLIPTokenizer\.from_pretrained of"):
        tokenizer_check(Bundle.open(tmp_path / "bundle"), "tokenizer", resaved / "tokenizer", PROMPTS)


def test_a_tokenizer_with_more_ids_than_the_text_encoder_is_refused(resaved: Path, toy: Path) -> None:
    path = resaved / "tokenizer" / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"]["rain</w></w>"] = 5000
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"has ids up to 5000, but the text encoder in .* takes 1538"):
        recipe_from_options(toy_options(toy, sd=resaved))


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_half_a_vocabulary_is_refused(missing: str, toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "sd", tmp_path / "sd")
    (tmp_path / "sd" / "tokenizer" / missing).unlink()
    with pytest.raises(
        CheckpointError, match=r"has no tokenizer/vocab\.json and merges\.txt, nor tokenizer/tok"
    ):
        recipe_from_options(toy_options(toy, sd=tmp_path / "sd"))


def test_a_tokenizer_of_another_model_is_refused_before_anything_is_made(
    resaved: Path, toy: Path, tmp_path: Path
) -> None:
    (resaved / "tokenizer" / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
    with pytest.raises(CheckpointError, match="is a 'WordPiece' tokenizer"):
        build_text_encoder(resaved, toy, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
