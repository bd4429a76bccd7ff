# SPDX-License-Identifier: Apache-2.0
"""CLIP's tokenizer, loaded from its published folder: byte-level BPE with the tokenizers library.

The ids equal those of transformers' CLIPTokenizer, including its quirks: special tokens are also recognised
inside a prompt (SDXL's second tokenizer pads with "!", so any "!" gets the padding's id there).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.engine.files.tokenizer import END_OF_WORD, TokenizerFiles, read_tokenizer_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

MAX_TOKENS = 77
"""Positions of CLIP's text encoders, including begin and end of text."""

MAX_PROMPT_CHARS = 100_000
"""Maximum length of a prompt, of which 77 tokens are used; a megabyte takes seconds to tokenize."""

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class TokenizedPrompt:
    """A tokenized prompt. input_ids: int64 (1, max_length). truncated_text: the end of the prompt that did
    not fit, or ""."""

    input_ids: NDArray[np.int64]
    truncated_text: str


@dataclass(frozen=True)
class CLIPTokenizer:
    """CLIP's tokenizer, created by `load_tokenizer`."""

    backend: "Tokenizer"
    eos_token_id: int
    pad_token_id: int
    max_length: int = MAX_TOKENS

    def __call__(self, prompt: str) -> TokenizedPrompt:
        """Tokenize: begin of text, the prompt's first max_length - 2 tokens, end of text, padding.

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
    """The prompt with surrogate pairs replaced by their characters.

    Raises InputError if it is not a string, is longer than MAX_PROMPT_CHARS, or contains a lone surrogate,
    with which Python represents bytes that it could not decode.
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
            f"the prompt {prompt!a:.200} is not all text: it is not UTF-8, or the locale is not. Set "
            "PYTHONUTF8=1 or LC_ALL=C.UTF-8, or give the prompt in a UTF-8 file, by --prompts FILE."
        ) from error


def load_tokenizer(folder: str | Path, max_length: int = MAX_TOKENS) -> CLIPTokenizer:
    """Load the tokenizer of a folder in any layout that engine/files/tokenizer.py reads.

    Raises CheckpointError if files are missing or inconsistent.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors

    folder = Path(folder)
    files = read_tokenizer_files(folder)
    backend = Tokenizer(_bpe(folder, files))
    ids = {name: files.vocab[token] for name, token in files.special.items()}
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.add_tokens([AddedToken(text, special=True, **options) for text, options in files.added])
    backend.post_processor = processors.RobertaProcessing(
        (files.special["eos_token"], ids["eos_token"]),
        (files.special["bos_token"], ids["bos_token"]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return CLIPTokenizer(backend, ids["eos_token"], ids["pad_token"], max_length)


def _bpe(folder: Path, files: TokenizerFiles) -> "BPE":
    from tokenizers.models import BPE

    try:
        return BPE(
            vocab=dict(files.vocab),
            merges=list(files.merges),
            end_of_word_suffix=END_OF_WORD,
            unk_token=files.special["unk_token"],
        )
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{folder} holds no BPE vocabulary: {error!s:.300}.") from error
