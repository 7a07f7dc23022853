"""The prompt of a scene: what the car is to do, its speed and its acceleration, as text and as tokens."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dipole_ray.agents.florence import PADDING
from dipole_ray.driving.log import COMMANDS
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.vehicle import Array
from dipole_ray.errors import ConfigError

TOKENIZER = "tokenizer.json"
_MAX_BYTES = 64 << 20
_WORDS = (
    "<s>",
    "<pad>",
    "</s>",
    "navigation",
    *COMMANDS,
    "speed",
    "acceleration",
    "aside",
    ",",
    ".",
    "-",
    *"0123456789",
)
"""A vocabulary that suffices for these prompts; padding is where Florence-2 has it."""


class Tokenizer(Protocol):
    """Makes numbers of a text."""

    def __call__(self, text: str) -> list[int]:
        """Return the numbers of the text's tokens."""
        ...


def prompt(one: RecordedScene) -> str:
    """Return a scene's prompt."""
    return prompt_of(one.motion, one.command)


def prompt_of(motion: Array, command: str) -> str:
    """Return the prompt of a car with this motion (4, 4): speed in m/s, acceleration ahead and to the left in m/s^2."""
    speed, _, ahead, aside = motion[-1]
    return f"navigation {command}, speed {speed:.1f}, acceleration {ahead:.1f}, aside {aside:.1f}"


def padded(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Array:
    """Return the tokens of prompts, (N, length) int64 with padding at the end.

    Raises:
        ConfigError: A prompt is longer.
    """
    found = np.full((len(texts), length), PADDING, dtype=np.int64)
    for row, text in zip(found, texts, strict=True):
        tokens = tokenizer(text)
        if len(tokens) > length:
            raise ConfigError(f"the prompt {text!r} has {len(tokens)} tokens, the encoder takes {length}")
        row[: len(tokens)] = tokens
    return found


def few_words(text: str) -> list[int]:
    """Return the tokens of a prompt in the small vocabulary, in which digits are words."""
    words = re.findall(r"[a-z]+|[0-9]|[^a-z0-9 ]", text)
    return [0, *(_WORDS.index(word) for word in words), 2]


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder of published weights, from its `tokenizer.json`; nothing is fetched.

    Raises:
        ConfigError: There is none, or it is damaged, or of a model with other padding.
    """
    path = folder / TOKENIZER
    remedy = "take it from the folder of Florence-2-large"
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise ConfigError(f"{path}: no such file of at most {_MAX_BYTES >> 20} MiB; {remedy}")
    import tokenizers  # comes with transformers

    try:
        read: Any = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # its Rust raises Exception itself
        raise ConfigError(f"{path}: not a tokenizer ({error}); {remedy}") from None
    if read.token_to_id("<pad>") != PADDING:
        raise ConfigError(f"{path}: <pad> is {read.token_to_id('<pad>')} and not {PADDING}, another model's; {remedy}")
    return lambda text: list(read.encode(text).ids)
