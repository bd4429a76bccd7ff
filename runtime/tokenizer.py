# SPDX-License-Identifier: Apache-2.0
"""CLIP's tokenizer from its published folder: byte-level BPE through the tokenizers library.

The ids are those of transformers' CLIPTokenizer, quirks included: special tokens are also recognised inside a
prompt (SDXL's second tokenizer pads with "!", so any "!" gets the padding's id there).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE

MAX_TOKENS = 77
"""Positions of CLIP's text encoders, begin and end of text included."""

MAX_PROMPT_CHARS = 100_000
"""Of a prompt, of which 77 tokens are read; a megabyte takes seconds to tokenize."""

_MAX_FILE_BYTES = 64 << 20

_SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class TokenizedPrompt:
    """input_ids: int64 (1, max_length). truncated_text: the end of the prompt that did not fit, "" if all
    did."""

    input_ids: NDArray[np.int64]
    truncated_text: str


@dataclass(frozen=True)
class CLIPTokenizer:
    """Made by `load_tokenizer`."""

    backend: "Tokenizer"
    eos_token_id: int
    pad_token_id: int
    max_length: int = MAX_TOKENS

    def __call__(self, prompt: str) -> TokenizedPrompt:
        """Begin of text, the prompt's first max_length - 2 tokens, end of text, padding.

        Raises InputError as `prompt_text`.
        """
        text = prompt_text(prompt)
        encoding = self.backend.encode(text)
        ids, cut = encoding.ids, ""
        if len(ids) > self.max_length:
            first_cut = self.max_length - 1
            cut = text[encoding.offsets[first_cut][0] :]
            ids = [*ids[:first_cut], self.eos_token_id]
        padded = np.full((1, self.max_length), self.pad_token_id, np.int64)
        padded[0, : len(ids)] = ids
        return TokenizedPrompt(padded, cut)


def prompt_text(prompt: str) -> str:
    """The prompt as text; a pair of surrogates becomes its character.

    Raises InputError if it is no string, is longer than MAX_PROMPT_CHARS, or holds half of a pair, as which
    Python passes on bytes that it could not decode.
    """
    if not isinstance(prompt, str):
        raise InputError(f"the prompt is {prompt!r:.100}; expected a string.")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise InputError(
            f"the prompt has {len(prompt)} characters, expected at most {MAX_PROMPT_CHARS}; only "
            f"{MAX_TOKENS} tokens are read, a few hundred characters: shorten it."
        )
    try:
        return prompt.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the prompt {prompt!a:.200} is not all text: it was not UTF-8, or the locale is not. Set "
            "PYTHONUTF8=1 or LC_ALL=C.UTF-8, or give the prompt in a UTF-8 file, by --prompts FILE."
        ) from error


def load_tokenizer(folder: str | Path, max_length: int = MAX_TOKENS) -> CLIPTokenizer:
    """The tokenizer of a folder with vocab.json and merges.txt, or tokenizer.json, and what there is of
    tokenizer_config.json and special_tokens_map.json. Raises CheckpointError if files are missing or do not
    fit."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors

    folder = Path(folder)
    try:
        special, added = _special_tokens(folder)
    except CheckpointError:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the special tokens in {folder} are not as published, a text or its fields each: {error!r:.200}."
        ) from error
    backend = Tokenizer(_bpe(folder, special["unk_token"]))
    vocabulary = backend.get_vocab()
    missing = sorted(set(special.values()) - vocabulary.keys())
    if missing:
        raise CheckpointError(
            f"the vocabulary in {folder} lacks the special token {', '.join(missing)}; is it CLIP's?"
        )
    ids = {name: vocabulary[token] for name, token in special.items()}
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.add_tokens(added)
    backend.post_processor = processors.RobertaProcessing(
        (special["eos_token"], ids["eos_token"]),
        (special["bos_token"], ids["bos_token"]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return CLIPTokenizer(backend, ids["eos_token"], ids["pad_token"], max_length)


def _bpe(folder: Path, unk_token: str) -> "BPE":
    """The vocabulary and its merges, from tokenizer.json if there is one, as transformers prefers it."""
    from tokenizers.models import BPE

    serialized = _json(folder / "tokenizer.json")
    try:
        if serialized:
            vocab, merges = serialized["model"]["vocab"], serialized["model"]["merges"]
            merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]
        else:
            vocab, merges = BPE.read_file(str(_file(folder, "vocab.json")), str(_file(folder, "merges.txt")))
        return BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=unk_token)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{folder} holds no BPE vocabulary: {error!s:.300}.") from error


def _special_tokens(folder: Path) -> tuple[dict[str, str], list["AddedToken"]]:
    """The special tokens by name, and the list of what is recognised inside a prompt, where a later entry
    replaces an earlier one of the same text. As transformers reads them: special_tokens_map.json overrules
    tokenizer_config.json, and both yield to a list with ids in tokenizer_config.json or tokenizer.json."""
    config = _json(folder / "tokenizer_config.json")
    listed = config.get("added_tokens_decoder")
    if listed is None:
        config |= _json(folder / "special_tokens_map.json")
        listed = {fields["id"]: fields for fields in _json(folder / "tokenizer.json").get("added_tokens", [])}
    by_id = [_added_token(fields) for _, fields in sorted(listed.items(), key=lambda item: int(item[0]))]
    known = {token.content for token in by_id}
    named = {name: _added_token(config.get(name) or default) for name, default in _SPECIAL_TOKENS.items()}
    added = by_id + [token for token in named.values() if token.content not in known]
    return {name: token.content for name, token in named.items()}, added


def _added_token(value: str | dict[str, Any]) -> "AddedToken":
    """A special token from its text or from the fields that a tokenizer file holds."""
    from tokenizers import AddedToken

    if isinstance(value, str):
        return AddedToken(value, special=True)
    fields = {key: value[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in value}
    return AddedToken(value["content"], special=True, **fields)


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {name}; expected the published tokenizer folder.")
    return _small(path)


def _small(path: Path) -> Path:
    """The path. CheckpointError if the file is larger than any tokenizer's."""
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise CheckpointError(f"{path} has more than {_MAX_FILE_BYTES >> 20} MiB: it is no tokenizer file.")
    return path


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_small(path).read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}; expected a JSON object.")
    return value
