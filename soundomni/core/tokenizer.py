"""Text to token ids: byte-level BPE with the special tokens of the sequence language.

Byte-level BPE (Radford et al. 2019, section 2.2) writes any text without unknown tokens. A small vocabulary is learned
from the captions of a run; the tokenizer.json of another model also works.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from soundomni.core.errors import CheckpointError, DataError, SoundOmniError
from soundomni.core.files.paths import place
from soundomni.core.files.small_files import read_json
from soundomni.core.limits import MOST_VOCABULARY
from soundomni.core.tokenizer_parts import check_tokenizer

PAD, BOS, EOS = "<|pad|>", "<|im_start|>", "<|im_end|>"
AUDIO_BOS, AUDIO_EOS = "<|audio_bos|>", "<|audio_eos|>"
END_OF_DOCUMENT = "<|endoftext|>"
"""Token that also ends a text if the vocabulary has it: language models not trained on chats write it after an
answer."""
WORD = r" ?[\w#'+-]+| ?[^\s\w#'+-]+|\s+"
"""Text that may become one token: a word with the space before it. Names such as "A#3" and "8-bit" are words."""
SPECIAL_TOKENS = (PAD, BOS, EOS, AUDIO_BOS, AUDIO_EOS)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""The character that stands for bytes that do not form a whole one."""
FILE_NAME = "tokenizer.json"
MOST_BYTES, MOST_VALUES = 50_000_000, 4_000_000
"""Limits for a tokenizer.json; a vocabulary of 262,144 tokens with its merges takes 33 MB and 1.8 million values."""


class TextTokenizer:
    """A `tokenizers.Tokenizer` that knows the special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS[1:]}
        known = {token: index for token, index in ids.items() if index is not None}
        if len(known) < len(ids):
            raise CheckpointError(f"the tokenizer lacks the special tokens {', '.join(sorted(ids.keys() - known.keys()))}")
        tokenizer.encode_special_tokens = True  # a caption that spells "<|im_end|>" is text, not the end of the text
        tokenizer.no_truncation()  # a file may ask for truncation or padding; texts are never cut or padded
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.added: tuple[str, ...] = ()
        """Special tokens that `load` added."""
        self.bos = known[BOS]
        self.eos = known[EOS]
        self.audio_bos = known[AUDIO_BOS]
        self.audio_eos = known[AUDIO_EOS]
        beside = tokenizer.token_to_id(END_OF_DOCUMENT)
        self.ends: tuple[int, ...] = (self.eos,) if beside is None else (self.eos, beside)
        """Ids that end a text."""

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> TextTokenizer:
        """Learn byte-level BPE; the result depends only on the texts and the size.

        At most 261 entries means plain bytes.
        """
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Prepend(" ")  # so that the first word is treated like any other
        words = pre_tokenizers.Split(Regex(WORD), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocab_size, len(SPECIAL_TOKENS) + 256),
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | Path, *, extend: bool = False) -> TextTokenizer:
        """Read a tokenizer.json, or the one in a directory; with `extend`, missing special tokens are added after its
        last id.

        Raise CheckpointError if it is missing or unreadable, has parts that are not supported, or lacks special tokens.
        """
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        if not file.exists():
            raise CheckpointError(f"no tokenizer at {place(path)}; expected a tokenizer.json or a directory with one")
        try:
            checked = check_tokenizer(read_json(file, most_bytes=MOST_BYTES, most_values=MOST_VALUES))
            with _failures(CheckpointError, "the tokenizers library refuses it"):
                tokenizer = Tokenizer.from_str(json.dumps(checked))  # the checked data, in case the file repeats keys
            missing = tuple(token for token in SPECIAL_TOKENS[1:] if extend and tokenizer.token_to_id(token) is None)
            tokenizer.add_special_tokens(list(missing))
            loaded = cls(tokenizer)
            loaded.added = missing
        except FileNotFoundError as error:
            raise CheckpointError(f"no tokenizer at '{path}'; expected a {FILE_NAME} or a directory with one") from error
        except Exception as error:  # the library raises a bare Exception for every malformed file
            raise CheckpointError(f"'{file}' is not a usable tokenizer.json: {error}") from error
        if loaded.vocab_size > MOST_VOCABULARY + len(missing):
            raise CheckpointError(f"'{file}' has ids up to {loaded.vocab_size - 1:,}; expected ids below {MOST_VOCABULARY:,}")
        return loaded

    def to_json(self) -> str:
        """Return the contents of tokenizer.json."""
        return str(self._tokenizer.to_str())

    def save(self, directory: str | Path) -> Path:
        """Write tokenizer.json into `directory` and return its path."""
        path = Path(directory) / FILE_NAME
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @property
    def vocab_size(self) -> int:
        """Largest id plus one, special tokens included; other people's tokenizers may skip ids."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens around it. Raise DataError if it is not Unicode text."""
        check_unicode(text)
        with _failures(DataError, f"the tokenizer fails on {text[:40]!a}"):
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, without special tokens."""
        return self._decoded(ids).strip()

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """Decode ids as they come. The pieces, joined, are what `decode` makes of all ids.

        A character of several bytes may come in several tokens: it is held back until it is whole, and so is white space until
        something follows it.
        """
        window, shown = list[int](), ""  # the last ids, and the text of those that are done with: what follows depends on no more
        held, started = "", False
        for index in ids:
            window.append(index)
            text = self._decoded(window)
            if text.endswith(REPLACEMENT):
                continue
            held, alone = held + text[len(shown) :], self._decoded([index])
            window, shown = ([index], alone) if alone else (window, text)
            piece = held if started else held.lstrip()
            ready = piece.rstrip()
            if ready:
                yield ready
                started, held = True, piece[len(ready) :]
        rest = (held + self._decoded(window)[len(shown) :]).rstrip()
        rest = rest if started else rest.lstrip()
        if rest:
            yield rest

    def _decoded(self, ids: Sequence[int]) -> str:
        with _failures(CheckpointError, "the tokenizer fails to decode what the model wrote"):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def check_unicode(text: str) -> None:
    """Raise DataError for a text with surrogates: bytes of a command line or a file that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text is {text[:40]!a}; expected UTF-8") from error


@contextmanager
def _failures(kind: type[SoundOmniError], what: str) -> Iterator[None]:
    """Raise an error of `kind` for anything the library raises, including its panics, which are not Exceptions and end
    the program."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # its class cannot be imported
            raise
        raise kind(f"{what}: {error}") from error
