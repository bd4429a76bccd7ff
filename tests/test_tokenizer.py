# SPDX-License-Identifier: Apache-2.0
import argparse
import inspect
import json
import random
import typing
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.runtime.tokenizer import load_tokenizer

MERGES = 1000
SCRIPTS = (
    "Ein Pferd läuft über die Straße. Лошадь бежит по дороге. Ένα άλογο τρέχει στο δρόμο. "
    "馬が道を走る。말이 길을 달린다. घोड़ा सड़क पर दौड़ता है। حصان يركض على الطريق 🐎 "
)
PIECES = (
    "a horse runs", "İSTANBUL", "Straße", "ǅ", "it's", "'LL", "we've", "e\u0301", "ﬁ", "½", "²", "👩‍👩‍👧",
    "!", "!!", "<|endoftext|>", "<|STARTOFTEXT|>", "<|startoftext|>", "\u00a0", "\u3000", "\t\n", "\r\n",
    "\ufeff", "\x00", "\x1b", "\x85", "\u200b", "\u2028",
)  # fmt: skip
RANGES = (
    (0x20, 0x7E), (0x20, 0x7E), (0x00, 0x2FF), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF),
    (0x1E00, 0x206F), (0x20A0, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xE000, 0xFFFF), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF),
)  # fmt: skip


def byte_alphabet() -> list[str]:
    """GPT-2's 256 printable characters for the bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def special(content: str, normalized: bool = True) -> dict[str, object]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": normalized,
        "rstrip": False,
        "single_word": False,
    }


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, int], list[str]]:
    """A vocabulary built as CLIP's: bytes, bytes with </w>, learned merges, two special tokens."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * 256 + MERGES,
        initial_alphabet=byte_alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    texts = [inspect.getsource(argparse), inspect.getsource(typing), SCRIPTS * 50]
    learner.train_from_iterator(texts, trainer)
    merges = [
        m if isinstance(m, str) else " ".join(m) for m in json.loads(learner.to_str())["model"]["merges"]
    ]
    assert len(merges) >= MERGES
    tokens = byte_alphabet() + [c + "</w>" for c in byte_alphabet()] + [m.replace(" ", "") for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def write_folder(folder: Path, vocabulary: tuple[dict[str, int], list[str]], pad: str | None) -> Path:
    """A published tokenizer folder; pad None: only the two files of the vocabulary."""
    vocab, merges = vocabulary
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    if pad is not None:
        begin, end = special("<|startoftext|>"), special("<|endoftext|>")
        names = {"bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": pad}
        typed = {k: {"__type": "AddedToken", **v} if isinstance(v, dict) else v for k, v in names.items()}
        config = {**typed, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
        (folder / "special_tokens_map.json").write_text(json.dumps(names))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def sd_folder(vocabulary: tuple[dict[str, int], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clip") / "tokenizer", vocabulary, "<|endoftext|>")


def prompts(count: int) -> list[str]:
    rng = random.Random(0)
    out = ["", " ", "hello " * 100, "馬" * 100]
    while len(out) < count:
        parts = []
        for _ in range(rng.randint(1, 12)):
            low, high = rng.choice(RANGES)
            text = "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))
            text = "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000)
            parts += [rng.choice([text, rng.choice(PIECES)]), rng.choice(["", " "])]
        out.append("".join(parts))
    return out


@pytest.mark.parametrize("layout", ["sd", "sdxl_2", "bare", "listed", "resaved"])
def test_ids_are_transformers_ids_over_unicode_prompts(
    layout: str, vocabulary: tuple[dict[str, int], list[str]], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pad = {"sd": "<|endoftext|>", "bare": None}.get(layout, "!")
    folder = write_folder(tmp_path / "tokenizer", vocabulary, pad)
    if layout == "listed":
        config = json.loads((folder / "tokenizer_config.json").read_text())
        vocab = vocabulary[0]
        listed = [special("!", False), special("<|startoftext|>"), special("<|endoftext|>", False)]
        config["added_tokens_decoder"] = {
            str(vocab[str(t["content"])]): {**t, "special": True} for t in listed
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if layout == "resaved":
        transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "resaved")
        folder = tmp_path / "resaved"
        assert not (folder / "vocab.json").exists()
    theirs, ours = transformers.CLIPTokenizer.from_pretrained(folder), load_tokenizer(folder)
    texts = prompts(1000)
    want = theirs(texts, padding="max_length", max_length=77, truncation=True).input_ids
    got = [ours(text).input_ids[0].tolist() for text in texts]
    differing = [text for text, a, b in zip(texts, got, want, strict=True) if a != b]
    assert differing == []
    assert sum(ours(text).truncated_text != "" for text in texts) > 10
    assert len({token for ids in got for token in ids}) > 300


def test_a_prompt_is_framed_and_padded(sd_folder: Path, vocabulary: tuple[dict[str, int], list[str]]) -> None:
    begin, end = vocabulary[0]["<|startoftext|>"], vocabulary[0]["<|endoftext|>"]
    prompt = load_tokenizer(sd_folder)("")
    assert prompt.input_ids.tolist() == [[begin, *[end] * 76]]
    assert (prompt.input_ids.dtype, prompt.truncated_text) == (np.int64, "")


def test_sdxls_second_tokenizer_pads_with_id_0(
    vocabulary: tuple[dict[str, int], list[str]], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path / "tokenizer_2", vocabulary, "!"))
    assert tokenizer.pad_token_id == vocabulary[0]["!"] == 0
    assert tokenizer("").input_ids[0, 2:].tolist() == [0] * 75


def test_what_does_not_fit_is_returned_as_it_was_written(sd_folder: Path) -> None:
    tokenizer = load_tokenizer(sd_folder)
    assert tokenizer("1 " * 75).truncated_text == ""
    assert tokenizer("1 " * 75 + "Straße  ÜBER").truncated_text == "Straße  ÜBER"
    cut = tokenizer("1 " * 75 + "Straße").input_ids
    np.testing.assert_array_equal(cut, tokenizer("1 " * 76).input_ids)


def test_pairs_of_surrogates_and_control_characters_are_tokenized(sd_folder: Path) -> None:
    tokenizer = load_tokenizer(sd_folder)
    np.testing.assert_array_equal(tokenizer("\ud83d\udc0e").input_ids, tokenizer("\U0001f40e").input_ids)
    assert tokenizer("\x00\x1b").input_ids.shape == (1, 77)


@pytest.mark.parametrize("prompt", ["a\ud800b", "\udc0e\ud83d", "caf\udcc3\udca9", "\udcff"], ids=ascii)
def test_a_prompt_with_half_of_a_surrogate_pair_is_refused(sd_folder: Path, prompt: str) -> None:
    with pytest.raises(InputError, match=r"is not all text.*PYTHONUTF8=1"):
        load_tokenizer(sd_folder)(prompt)


def test_a_prompt_that_is_no_string_is_refused(sd_folder: Path) -> None:
    with pytest.raises(InputError, match="the prompt is None"):
        load_tokenizer(sd_folder)(None)  # type: ignore[arg-type]


def test_a_folder_that_holds_no_clip_tokenizer_is_refused(
    vocabulary: tuple[dict[str, int], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"has no vocab\.json"):
        load_tokenizer(tmp_path)
    folder = write_folder(tmp_path / "tokenizer", vocabulary, None)
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no BPE vocabulary"):
        load_tokenizer(folder)
    lacking = {k: v for k, v in vocabulary[0].items() if k != "<|endoftext|>"}
    (folder / "vocab.json").write_text(json.dumps(lacking))
    with pytest.raises(CheckpointError, match=r"lacks the special token <\|endoftext\|>"):
        load_tokenizer(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary[0]))
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        load_tokenizer(folder)
