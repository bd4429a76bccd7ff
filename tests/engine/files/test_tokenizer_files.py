# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer folder says, read without transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from lamp_trt.engine.files.tokenizer import read_tokenizer_files

TOKENS = ("<|startoftext|>", "<|endoftext|>", *"abcdefg")
ADDED = {"<zoom>": 10, "<pan>": 9, "<tilt>": 11}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", ADDED),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {str(number): {"content": text} for text, number in ADDED.items()}},
        ),
    ],
)
def test_added_tokens_are_numbered_by_their_ids_not_by_their_digits(
    name: str, content: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / name).write_text(json.dumps(content))
    files = read_tokenizer_files(tmp_path)
    assert files.new == ["<pan>", "<zoom>", "<tilt>"]
    assert files.size == 12
