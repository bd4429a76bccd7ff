# SPDX-License-Identifier: Apache-2.0
"""A small CLIP tokenizer: byte-level BPE with end-of-word marks and merges learned from WORDS."""

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

NUM_MERGES = 1024
START, END = "<|startoftext|>", "<|endoftext|>"
NUM_TOKENS = 2 * 256 + NUM_MERGES + 2  # bytes, bytes that end a word, merges, START and END
MODEL_MAX_LENGTH = 77

WORDS = """
a the of in on and with at to is by from over under through into near between behind above across around
horse horses run runs running rain raining rainy heavy car cars road roads street light lights night day
firework fireworks explode explodes sky skies cloud clouds birds bird fly flies flying helicopter
helicopters land lands landing waterfall waterfalls water flows flowing river lake sea ocean waves wave
beach island play plays playing guitar piano violin music musician woman women man men girl boy child
children person people turn turns turning smile smiles smiling laugh laughing face faces portrait handsome
beautiful young old dog dogs cat cats lion tiger elephant giraffe zebra monkey panda rabbit fox wolf bear
deer eagle owl parrot penguin dolphin whale shark turtle butterfly dragon unicorn robot astronaut knight
king queen wizard princess red orange yellow green blue purple pink brown black white gray golden silver
dark bright colorful pastel small large big tiny huge giant tall short long wide narrow deep shallow high
low fast slow quick quiet loud forest mountain mountains desert city village castle bridge tower house
garden park field meadow valley hill snow snowy winter summer spring autumn morning evening sunset sunrise
moonlight sunlight shadow shadows storm lightning thunder wind windy fog mist smoke fire flame flames ice
stone rock rocks sand grass tree trees leaf leaves flower flowers rose tulip sunflower mushroom apple banana
cherry lemon strawberry bread cake coffee photo photograph photography painting drawing sketch illustration
cartoon anime realistic cinematic detailed quality resolution style watercolor oil digital concept artistic
masterpiece professional studio lens focus camera film frame scene view landscape background foreground
closeup aerial panoramic wide-angle bokeh blur walk walks walking jump jumps jumping dance dances dancing
swim swims swimming climb climbing ride rides riding drive drives driving sit sits sitting stand stands
standing sleep sleeping eat eating drink drinking look looks looking hold holds holding open opens opening
close closes fall falls falling rise rises rising spin spins spinning glow glows glowing shine shines
shining burn burns burning bloom blooms blooming melt melts train trains plane airplane boat ship bicycle
motorcycle truck bus rocket spaceship planet planets star stars galaxy universe earth moon sun space future
futuristic ancient medieval modern vintage magic magical mysterious wooden metal glass crystal marble
leather fabric cotton silk paper plastic ceramic bronze copper diamond happy sad angry calm peaceful
dramatic gentle wild strong soft smooth rough shiny transparent reflective wearing jacket dress shirt hat
crown glasses shoes boots scarf armor uniform costume helmet sword shield kitchen bedroom library museum
market restaurant station airport hospital school office factory stadium table chair window door mirror lamp
clock book books bottle cup plate basket umbrella balloon balloons candle north south east west left right
front back top bottom center corner edge line circle square triangle pattern one two three four five six
seven eight nine ten hundred thousand million first second third last many few it its this that these those
there here where when while then than as not no without very more most some any he she they them his her
their you your we our who which what how why because although however together alone make makes made making
take takes taken give gives given come comes coming move moves moving slowly quickly video animation motion
sequence timelapse background texture abstract geometric symmetrical fractal surreal minimalist
impressionist photorealistic hyperrealistic ultra sharp intricate elegant atmospheric volumetric chocolate
elephantine extraordinary neighborhood thunderstorm candlelight wilderness architecture celebration ! ? . ,
; : ' " ( ) - & / 0 1 2 3 4 5 6 7 8 9 's 're 'll ... !! é ü ñ
"""
"""Words by descending frequency: a word at position i of n is counted n - i times."""


def byte_characters() -> list[str]:
    """The printable character of each byte 0..255, as in GPT-2 and CLIP.

    Printable Latin-1 characters represent themselves; U+0100 onwards the other 68 bytes.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


@cache
def learn_merges(words: str, num_merges: int) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding (Sennrich et al. 2016, algorithm 1), the most frequent pair first.

    Ties go to the pair that sorts first, so the result depends only on the words. Raises ValueError if the
    words give fewer than num_merges merges.
    """
    split = words.split()
    characters = byte_characters()
    spellings: dict[tuple[str, ...], int] = {}
    for position, word in enumerate(split):
        symbols = [characters[byte] for byte in word.encode()]
        symbols[-1] += "</w>"
        spellings.setdefault(tuple(symbols), len(split) - position)

    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols_, count in spellings.items():
            for pair in pairwise(symbols_):
                pairs[pair] += count
        if not pairs:
            raise ValueError(f"the words give only {len(merges)} merges, {num_merges} are wanted: add words")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = {_merge(symbols_, best): count for symbols_, count in spellings.items()}
    return merges


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    if pair[0] not in symbols:
        return symbols
    merged: list[str] = []
    i = 0
    while i < len(symbols):
        joined = symbols[i : i + 2] == pair
        merged.append(symbols[i] + symbols[i + 1] if joined else symbols[i])
        i += 2 if joined else 1
    return tuple(merged)


def write_tokenizer(folder: Path, *, pad_token: str = END) -> None:
    """Write vocab.json, merges.txt, special_tokens_map.json, tokenizer_config.json, as in published folders.

    pad_token: END in Stable Diffusion v1.4 and in SDXL's first tokenizer, "!" (id 0) in SDXL's second.
    """
    folder.mkdir(parents=True)
    merges = learn_merges(WORDS, NUM_MERGES)
    # CLIP numbers the bytes in the order of their characters, so that "!" is 0.
    characters = sorted(byte_characters(), key=ord)
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if not len(tokens) == len(vocabulary) == NUM_TOKENS:
        raise AssertionError("two merges give the same token")

    def special(content: str, normalized: bool) -> dict[str, object]:
        return {
            "content": content,
            "lstrip": False,
            "normalized": normalized,
            "rstrip": False,
            "single_word": False,
        }

    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    tokens_map = {
        "bos_token": special(START, True),
        "eos_token": special(END, True),
        "pad_token": pad_token,
        "unk_token": special(END, True),
    }
    settings = {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **special(START, True)},
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **special(END, True)},
        "errors": "replace",
        "model_max_length": MODEL_MAX_LENGTH,
        "name_or_path": "openai/clip-vit-large-patch14",
        "pad_token": pad_token,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **special(END, True)},
    }
    for name, content in (("special_tokens_map.json", tokens_map), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
