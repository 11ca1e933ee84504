"""The tokenizer of a run.

A resumed run has one. A new run takes that of its starting model, that of `model.tokenizer.path`, or learns one from
the data.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from soundomni.core.errors import CheckpointError
from soundomni.core.pretrained.start import KEPT_FILE, kept_text
from soundomni.core.spec.schema import Spec, TokenizerSpec
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.mixture import Mixture
from soundomni.train.checkpoint import read_state
from soundomni.train.parallel import World
from soundomni.train.run_directory.inventory import digest
from soundomni.train.run_directory.opening import RunDirectory, held
from soundomni.train.start_weights import Start

BYTES = 261
"""Vocabulary of a tokenizer that has only bytes and special tokens."""
TOKENIZER_TEXTS = 20_000
"""Number of items of each dataset whose texts a tokenizer is learned from."""


def run_tokenizer(
    spec: Spec, mixture: Mixture, world: World, home: RunDirectory | None, *, latest: Path | None, start: Start | None
) -> TextTokenizer:
    """Return the tokenizer of the run, the same on every rank.

    Rank 0 finds it, and writes it into the run directory if the run is new.

    Raises:
        CheckpointError: the checkpoint `latest` was trained with another tokenizer than that of the run directory.
    """

    def text() -> str:
        run = held(home)
        if latest is not None:
            if tokenizer_digest(run.directory) != read_state(latest)["tokenizer"]:
                raise CheckpointError(f"'{run.directory / TOKENIZER_FILE}' is not the tokenizer that '{latest}' was trained with")
            return TextTokenizer.load(run.directory).to_json()
        wanted = spec.model.tokenizer if spec.model is not None else None
        if start is not None:
            tokenizer = start.tokenizer()
            run.write(KEPT_FILE, kept_text(start.model))
        else:
            tokenizer = new_tokenizer(wanted, mixture)
        run.write(TOKENIZER_FILE, tokenizer.to_json())
        return tokenizer.to_json()

    return TextTokenizer(Tokenizer.from_str(str(world.gather(world.on_main(text))[0])))


def new_tokenizer(wanted: TokenizerSpec | None, mixture: Mixture) -> TextTokenizer:
    """Return the tokenizer that a spec asks for, read from its file or learned from the data; None stands for a spec without a model."""
    if wanted is None:
        return TextTokenizer.train([], vocab_size=BYTES)  # a codec reads no text, but clips have boundary tokens
    if wanted.path is not None:
        return TextTokenizer.load(wanted.path)
    texts = mixture.captions(TOKENIZER_TEXTS) if wanted.vocab_size > BYTES else ()  # bytes need no learning
    return TextTokenizer.train(texts, vocab_size=wanted.vocab_size)


def tokenizer_digest(run_dir: Path) -> str:
    """Return the SHA-256 of the tokenizer in a run directory. Raise CheckpointError on failure."""
    try:
        return digest(run_dir / TOKENIZER_FILE)
    except OSError as error:
        raise CheckpointError(f"'{run_dir / TOKENIZER_FILE}' cannot be read: {error.strerror or error}") from error
