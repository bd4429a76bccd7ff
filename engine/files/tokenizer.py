# SPDX-License-Identifier: Apache-2.0
"""The files of CLIP's tokenizer, in the layouts that transformers has written, as plain data.

transformers 5 writes tokenizer.json and tokenizer_config.json; older versions and the published folders have
vocab.json, merges.txt, special_tokens_map.json and tokenizer_config.json. Precedence is transformers':
tokenizer.json before vocab.json and merges.txt, a list of added tokens with ids before special tokens by
name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.files.text import TextError, read_json_object, read_text, text_lines

SERIALIZED = "tokenizer.json"
VOCABULARY = ("vocab.json", "merges.txt")
CONFIG, NAMED_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
END_OF_WORD = "</w>"

_MAX_BYTES = 64 << 20
_SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
"""Keys of the list of further special tokens, since and before transformers 5; the first present is used."""
_OPTIONS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_EXPECTED = "expected CLIP's byte-level BPE"


@dataclass(frozen=True)
class TokenizerFiles:
    """vocab: token → id. merges: in order of rank. special: bos_token, eos_token, unk_token and pad_token
    → text. added: tokens recognised inside a prompt, as (text, options); a later entry replaces an earlier
    one with the same text."""

    vocab: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    special: Mapping[str, str]
    added: tuple[tuple[str, Mapping[str, bool]], ...]

    @property
    def new(self) -> list[str]:
        """The added tokens missing from the vocabulary; their ids follow it in this order."""
        return [text for text in dict(self.added) if text not in self.vocab]

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.vocab.values(), default=-1) + 1 + len(self.new)

    def meaning(self) -> tuple[object, ...]:
        """A value that is equal for tokenizers that give every prompt the same ids."""
        return self.vocab, self.merges, self.special, dict(self.added), self.new


def read_tokenizer_files(folder: Path, *, serialized: bool = True) -> TokenizerFiles:
    """Read a tokenizer folder. serialized: whether tokenizer.json is read. CheckpointError for files that are
    missing, damaged, or of another kind of tokenizer."""
    whole = _json(folder / SERIALIZED) if serialized else {}
    vocab, merges = _from_serialized(folder / SERIALIZED, whole) if whole else _from_two_files(folder)
    try:
        special, added = _special_tokens(folder, whole)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the special tokens in {folder} are not as published, a text or its fields each: {error!r:.200}."
        ) from error
    missing = sorted(set(special.values()) - vocab.keys())
    if missing:
        raise CheckpointError(
            f"the vocabulary in {folder} lacks the special token {', '.join(missing):.200}; is it CLIP's?"
        )
    return TokenizerFiles(vocab, merges, special, added)


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files that a bundle needs for the same ids as from the whole folder: of a vocabulary in both
    layouts the two old files, and tokenizer.json only if it adds information. CheckpointError as
    `read_tokenizer_files`, and if the two layouts are of different tokenizers."""
    best = read_tokenizer_files(folder)
    names = [*VOCABULARY, NAMED_TOKENS, CONFIG]
    if "added_tokens_decoder" not in _json(folder / CONFIG):
        names.append(ADDED_TOKENS)
    if _has_vocabulary(folder) and (folder / SERIALIZED).is_file():
        other = read_tokenizer_files(folder, serialized=False)
        if (best.vocab, best.merges) != (other.vocab, other.merges):
            raise CheckpointError(
                f"{folder / SERIALIZED} and {' and '.join(VOCABULARY)} next to it are of different "
                "tokenizers. Remove the files that do not belong to this checkpoint."
            )
        names += [SERIALIZED] * (best.meaning() != other.meaning())
    elif (folder / SERIALIZED).is_file():
        names = [SERIALIZED, *names[len(VOCABULARY) :]]
    return {name: folder / name for name in names if (folder / name).is_file()}


def _has_vocabulary(folder: Path) -> bool:
    return all((folder / name).is_file() for name in VOCABULARY)


Vocabulary = tuple[dict[str, int], tuple[tuple[str, str], ...]]


def _from_serialized(path: Path, whole: Mapping[str, Any]) -> Vocabulary:
    model = whole.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path} holds no BPE vocabulary: it has no `model`.")
    kind = model.get("type", "BPE")
    problem = ""
    if kind != "BPE":
        problem = f"a {kind!r:.50} tokenizer"
    elif model.get("byte_fallback") or model.get("end_of_word_suffix", END_OF_WORD) != END_OF_WORD:
        problem = f"a BPE whose words do not end with {END_OF_WORD}, as in GPT-2 and Llama"
    if problem:
        raise CheckpointError(f"{path} is {problem}, {_EXPECTED}: is it the folder of another model?")
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise CheckpointError(f"{path} holds no BPE vocabulary: it has no list of merges.")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in merges]
    return _checked(path, model.get("vocab"), pairs)


def _from_two_files(folder: Path) -> Vocabulary:
    for name in VOCABULARY:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}. {missing_tokenizer(folder)}")
    merges = [
        tuple(line.split(" "))
        for line in text_lines(_text(folder / "merges.txt"))
        if line and not line.startswith("#version")
    ]
    return _checked(folder / "merges.txt", _json(folder / "vocab.json"), merges)


def missing_tokenizer(folder: Path) -> str:
    """The expected contents of a tokenizer folder, and the other kind that this one seems to be."""
    foreign = [p.name for p in folder.glob("*") if p.name.endswith((".model", "vocab.txt"))]
    what = f" ({foreign[0]:.100} there is of another kind of tokenizer)" if foreign else ""
    return f"Expected vocab.json with merges.txt, or {SERIALIZED}, of {_EXPECTED[9:]}{what}."


def _checked(path: Path, vocab: Any, merges: list[Any]) -> Vocabulary:
    numbered = isinstance(vocab, dict) and all(type(i) is int and 0 <= i < 2**31 for i in vocab.values())
    if not numbered or not vocab:
        raise CheckpointError(f"{path.parent} holds no BPE vocabulary: its tokens have no ids.")
    for rank, pair in enumerate(merges, 1):
        listed = isinstance(pair, list | tuple)
        if not listed or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise CheckpointError(f"{path}: merge {rank} is {pair!r:.100}, expected two tokens.")
    return vocab, tuple((left, right) for left, right in merges)


Added = tuple[tuple[str, Mapping[str, bool]], ...]


def _special_tokens(folder: Path, whole: Mapping[str, Any]) -> tuple[dict[str, str], Added]:
    """Read special tokens as transformers does: special_tokens_map.json overrides tokenizer_config.json, and
    a list with ids in tokenizer_config.json, tokenizer.json or added_tokens.json overrides both."""
    config = _json(folder / CONFIG)
    listed = config.get("added_tokens_decoder")
    if listed is None:
        further = {name: config[name] for name in _EXTRA if config.get(name)}
        config |= _json(folder / NAMED_TOKENS) | further
    named = {name: _added_token(config.get(name) or default) for name, default in _SPECIAL_TOKENS.items()}
    if listed is None:
        texts = {text for text, _ in named.values()}
        listed = {
            number: {"content": text, "normalized": text not in texts}
            for text, number in _json(folder / ADDED_TOKENS).items()
        }
        listed |= {fields["id"]: fields for fields in whole.get("added_tokens", [])}
    by_id = [_added_token(fields) for _, fields in sorted(listed.items(), key=lambda item: int(item[0]))]
    known = {text for text, _ in by_id}
    added = by_id + [token for token in (*named.values(), *_further(config)) if token[0] not in known]
    for side in ("padding_side", "truncation_side"):
        if config.get(side, "right") != "right":
            raise CheckpointError(f"{folder / CONFIG} has {side} {config[side]!r:.50}, CLIP's is 'right'.")
    return {name: text for name, (text, _) in named.items()}, tuple(added)


def _further(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, bool]]]:
    """Special tokens with other names and words added by textual inversion, in transformers' order."""
    extra: Any = next((config[name] for name in _EXTRA if config.get(name)), [])
    if not isinstance(extra, dict | list):
        raise TypeError(extra)
    values = [config.get(name) for name in ("sep_token", "cls_token", "mask_token")]
    values += extra.values() if isinstance(extra, dict) else extra
    return list(dict(_added_token(value) for value in values if value is not None).items())


def _added_token(value: Any) -> tuple[str, Mapping[str, bool]]:
    """A token's text and options, from its text or from the fields that a file holds."""
    if isinstance(value, str):
        return value, _OPTIONS
    options = {key: value.get(key, default) for key, default in _OPTIONS.items()}
    if not isinstance(value["content"], str) or not all(type(option) is bool for option in options.values()):
        raise TypeError(value)
    return value["content"], options


def _text(path: Path) -> str:
    try:
        return read_text(path, _MAX_BYTES)
    except TextError as error:
        raise CheckpointError(f"{path} {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing."""
    if not path.is_file():
        return {}
    try:
        return read_json_object(path, _MAX_BYTES)
    except TextError as error:
        raise CheckpointError(f"{path} {error}") from error
