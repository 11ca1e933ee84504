"""Text to token ids: byte-level BPE with the special tokens of the sequence language.

Byte-level BPE (Radford et al. 2019, section 2.2) writes any text without unknown tokens. A small vocabulary is learnt from the
captions of a run; a directory with a tokenizer.json of another model works as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from soundomni.core.errors import CheckpointError, DataError
from soundomni.core.paths import place

PAD, BOS, EOS = "<|pad|>", "<|im_start|>", "<|im_end|>"
AUDIO_BOS, AUDIO_EOS = "<|audio_bos|>", "<|audio_eos|>"
END_OF_DOCUMENT = "<|endoftext|>"
"""What ends a text as well where a vocabulary has it: language models that were not trained on chats write it after an answer."""
WORD = r" ?[\w#'+-]+| ?[^\s\w#'+-]+|\s+"
"""What may become one token: a word with the space before it. Names such as "A#3" and "8-bit" are words."""
SPECIAL_TOKENS = (PAD, BOS, EOS, AUDIO_BOS, AUDIO_EOS)
FILE_NAME = "tokenizer.json"


class TextTokenizer:
    """Wraps a `tokenizers.Tokenizer` that knows the special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS[1:]}
        known = {token: index for token, index in ids.items() if index is not None}
        if len(known) < len(ids):
            raise CheckpointError(f"the tokenizer lacks the special tokens {', '.join(sorted(ids.keys() - known.keys()))}")
        tokenizer.encode_special_tokens = True  # a caption that spells "<|im_end|>" is text, not the end of the text
        tokenizer.no_truncation()  # a file may ask for either; texts are never cut, and nothing pads them
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
        """Learns byte-level BPE; the result depends on the texts and the size alone. At most 261 entries means plain bytes."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Prepend(" ")  # the first word is written as any other
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
        """Reads a tokenizer.json, or the one in a directory; with `extend`, special tokens that it lacks follow its last id.

        Raises CheckpointError when it is missing or unreadable, or lacks special tokens.
        """
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise CheckpointError(f"no tokenizer at {place(path)}: expected a tokenizer.json or a directory with one")
        try:
            tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
            missing = tuple(token for token in SPECIAL_TOKENS[1:] if extend and tokenizer.token_to_id(token) is None)
            tokenizer.add_special_tokens(list(missing))
            loaded = cls(tokenizer)
            loaded.added = missing
            return loaded
        except CheckpointError:
            raise
        except Exception as error:  # the library raises a bare Exception for every malformed file
            raise CheckpointError(f"'{file}' is not a tokenizer.json: {error}") from error

    def to_json(self) -> str:
        """Return what tokenizer.json says."""
        return str(self._tokenizer.to_str())

    def save(self, directory: str | Path) -> Path:
        """Writes tokenizer.json into `directory` and returns its path."""
        path = Path(directory) / FILE_NAME
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included; the ids of a tokenizer from elsewhere may have holes."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without special tokens around it. Raises DataError when it is not Unicode text."""
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except TypeError as error:  # surrogates: bytes of a command line or a file that are not UTF-8
            raise DataError(f"{text[:40]!a} was given, expected text in UTF-8") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
