# SPDX-License-Identifier: Apache-2.0
import argparse
import inspect
import json
import random
import shutil
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.engine.files.tokenizer import tokenizer_files
from lamp_trt.runtime.media.tokenizer import load_tokenizer

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


# --- the layouts of every age ----------------------------------------------------------------------------

HARD_PROMPTS = [
    *PIECES,
    "",
    " ",
    "A HORSE  runs\r\n fast",
    "<|endoftext|> a <|startoftext|>b",
    "!" * 80,
    "🐎" * 90,
]
Vocab = tuple[dict[str, int], list[str]]


def their_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    transformers = pytest.importorskip("transformers")
    published = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    ids: list[list[int]] = published(texts, padding="max_length", max_length=77, truncation=True).input_ids
    return ids


def new_layout(folder: Path, vocabulary: Vocab, pad: str | None = "!") -> Path:
    """As transformers of today saves it: tokenizer.json and tokenizer_config.json."""
    transformers = pytest.importorskip("transformers")
    old = write_folder(folder.with_name(f"{folder.name}-old"), vocabulary, pad)
    transformers.CLIPTokenizer.from_pretrained(old).save_pretrained(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def merges_as_strings(document: dict[str, Any]) -> None:
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]


def with_old_vocabulary(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(lines))


def with_mark_and_crlf(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))


def with_added_word(folder: Path) -> None:
    """A textual inversion: a word of its own behind the vocabulary."""
    added = {"id": 2000, "content": "<rain>", "normalized": False, "special": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    edit(folder / "tokenizer.json", lambda d: d["added_tokens"].append({**added, **flags}))


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "as saved": lambda folder: None,
    "merges as strings": lambda folder: edit(folder / "tokenizer.json", merges_as_strings),
    "both layouts": with_old_vocabulary,
    "tokenizer.json alone": lambda folder: (folder / "tokenizer_config.json").unlink(),
    "padding baked in": lambda folder: edit(
        folder / "tokenizer.json",
        lambda d: d.update(
            padding={"strategy": {"Fixed": 77}, "direction": "Right", "pad_to_multiple_of": None,
                     "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
            truncation={"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
        ),
    ),
    "an added word": with_added_word,
    "an added word beside the old layout": lambda f: (with_old_vocabulary(f), with_added_word(f)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pad", ["!", "<|endoftext|>"])
def test_a_bundle_of_any_layout_gives_transformers_ids(
    layout: str, pad: str, vocabulary: Vocab, tmp_path: Path
) -> None:
    folder = new_layout(tmp_path / "tokenizer", vocabulary, pad)
    LAYOUTS[layout](folder)
    texts = [*HARD_PROMPTS, *prompts(100), "a <rain> on <rain>horses"]
    want = their_ids(folder, texts)
    if layout == "as saved":
        with_mark_and_crlf(folder)  # which transformers does not read
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name, path in tokenizer_files(folder).items():
        shutil.copy(path, bundle / name)
    for source in (folder, bundle):
        ours = load_tokenizer(source)
        assert [ours(text).input_ids[0].tolist() for text in texts] == want


@pytest.mark.parametrize("pad", ["!", None])
def test_of_the_old_layout_a_bundle_takes_the_files_as_they_are(
    pad: str | None, vocabulary: Vocab, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "tokenizer", vocabulary, pad)
    (folder / "README.md").write_text("notes")
    expected = {"vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"}
    assert tokenizer_files(folder).keys() == (expected if pad else {"vocab.json", "merges.txt"})
    assert tokenizer_files(folder) == {name: folder / name for name in tokenizer_files(folder)}


def test_of_both_layouts_a_bundle_takes_the_old_one_if_the_other_says_no_more(
    vocabulary: Vocab, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "tokenizer", vocabulary, "!")
    before = tokenizer_files(folder)
    new = new_layout(tmp_path / "new", vocabulary)
    shutil.copy(new / "tokenizer.json", folder)
    assert tokenizer_files(folder) == before


@pytest.mark.parametrize(
    "change",
    [lambda d: d["model"]["merges"].reverse(), lambda d: d["model"]["vocab"].update({"zzz</w>": 2000})],
    ids=["merges", "vocabulary"],
)
def test_two_layouts_of_different_tokenizers_are_refused(
    change: Callable[[dict[str, Any]], object], vocabulary: Vocab, tmp_path: Path
) -> None:
    folder = new_layout(tmp_path / "tokenizer", vocabulary)
    with_old_vocabulary(folder)
    edit(folder / "tokenizer.json", change)
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json and vocab\.json and merges\.txt next to it are of"
    ):
        tokenizer_files(folder)


def foreign(kind: str) -> dict[str, Any]:
    """The model of a tokenizer.json of another family."""
    small = {"a": 0, "b": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
    return {
        "Llama": {"type": "BPE", "byte_fallback": True, "vocab": small, "merges": [], "unk_token": "a"},
        "GPT-2": {"type": "BPE", "end_of_word_suffix": "", "vocab": small, "merges": ["a b"]},
        "T5": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]},
        "BERT": {"type": "WordPiece", "vocab": small, "continuing_subword_prefix": "##"},
        "words": {"type": "WordLevel", "vocab": small},
        "GPT-1": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": 0}, "merges": []},
        "no model": None,
        "vocab a list": {"type": "BPE", "vocab": ["a"], "merges": []},
        "no merges": {"type": "BPE", "vocab": small},
        "merge of three": {"type": "BPE", "vocab": small, "merges": [["a", "b", "c"]]},
        "ids are texts": {"type": "BPE", "vocab": {"a": "0"}, "merges": []},
    }[kind]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Llama", "is a BPE whose words do not end with </w>, as in GPT-2 and Llama, expected CLIP's"),
        ("GPT-2", "is a BPE whose words do not end with </w>"),
        ("T5", "is a 'Unigram' tokenizer, expected CLIP's byte-level BPE"),
        ("BERT", "is a 'WordPiece' tokenizer"),
        ("words", "is a 'WordLevel' tokenizer"),
        ("GPT-1", "lacks the special token"),
        ("no model", "has no `model`"),
        ("vocab a list", "its tokens have no ids"),
        ("no merges", "has no list of merges"),
        ("merge of three", "merge 1 is .*, expected two tokens"),
        ("ids are texts", "its tokens have no ids"),
    ],
)
def test_another_familys_tokenizer_json_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": foreign(kind)}))
    for read in (load_tokenizer, tokenizer_files):
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path)


def test_a_sentencepiece_folder_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"\n")
    with pytest.raises(CheckpointError, match=r"spiece\.model there is of another kind of tokenizer"):
        load_tokenizer(tmp_path)


def test_added_tokens_json_of_old_textual_inversions_is_read(vocabulary: Vocab, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tokenizer", vocabulary, "!")
    (folder / "added_tokens.json").write_text(json.dumps({"<rain>": 2000}))
    texts = ["a <rain> on horses", "a <RAIN>"]
    assert [load_tokenizer(folder)(t).input_ids[0].tolist() for t in texts] == their_ids(folder, texts)
    assert "added_tokens.json" in tokenizer_files(folder)


FURTHER: dict[str, tuple[str, dict[str, object]]] = {
    "list of today": ("new", {"extra_special_tokens": ["<rain>", "<sun>", "!"]}),
    "mapping of today": ("new", {"extra_special_tokens": {"weather": "<rain>"}}),
    "list of old": ("new", {"additional_special_tokens": ["<sun>", "<rain>"]}),
    "both lists": ("new", {"extra_special_tokens": ["<rain>"], "additional_special_tokens": ["<sun>"]}),
    "by name": ("new", {"mask_token": "<rain>", "cls_token": "<sun>", "sep_token": "<|endoftext|>"}),
    "list in the map": ("map", {"additional_special_tokens": ["<rain>"], "mask_token": None}),
    "mask in the map": ("map", {"mask_token": {"content": "<rain>", "lstrip": True}}),
}


@pytest.mark.parametrize("case", FURTHER)
def test_further_special_tokens_have_transformers_ids(case: str, vocabulary: Vocab, tmp_path: Path) -> None:
    where, fields = FURTHER[case]
    if where == "new":
        folder = new_layout(tmp_path / "tokenizer", vocabulary)
        edit(folder / "tokenizer_config.json", lambda d: d.update(fields))
    else:
        folder = write_folder(tmp_path / "tokenizer", vocabulary, "!")
        (folder / "special_tokens_map.json").write_text(json.dumps(fields))
    texts = ["a <rain> on<sun> horses!", "<RAIN> <sun><rain>", "!! horse!"]
    assert [load_tokenizer(folder)(t).input_ids[0].tolist() for t in texts] == their_ids(folder, texts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"extra_special_tokens": "<rain>"}, "special tokens in .* are not as published"),
        ({"additional_special_tokens": [5]}, "special tokens in .* are not as published"),
        ({"padding_side": "left"}, "padding_side 'left', CLIP's is 'right'"),
        ({"truncation_side": "left"}, "truncation_side 'left', CLIP's is 'right'"),
    ],
)
def test_a_configuration_that_would_give_other_ids_is_refused(
    fields: dict[str, object], message: str, vocabulary: Vocab, tmp_path: Path
) -> None:
    folder = new_layout(tmp_path / "tokenizer", vocabulary)
    edit(folder / "tokenizer_config.json", lambda d: d.update(fields))
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(folder)
