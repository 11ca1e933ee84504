"""Files of a diffusers pipeline: its index, which says what its parts are, and its configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundomni.core.errors import SpecError, did_you_mean, message_of, shown
from soundomni.core.files.small_files import read_json
from soundomni.core.pretrained.config_sections import Section
from soundomni.experts.checkpoints.local_model import NETWORK_FOLDER, TOKENIZER_FOLDER
from soundomni.experts.checkpoints.stable_audio_model_config import MODEL

INDEX_FILE, SCHEDULER_FILE, TOKENIZER_FILE = "model_index.json", "scheduler_config.json", "tokenizer_config.json"
_PRIVATE = ("_class_name", "_diffusers_version", "_name_or_path")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Pipelines of the same parts.

    Args:
        pipelines: their classes; the first one is written.
        parts: part → its library and possible classes, of which the first one is written.
        codec: our codec for the part vae.
    """

    pipelines: tuple[str, ...]
    parts: Mapping[str, tuple[str, tuple[str, ...]]]
    codec: str

    def class_of(self, part: str) -> str:
        """Return the class of a part to write."""
        return self.parts[part][1][0]

    def index(self, version: str) -> dict[str, Any]:
        """Return the contents of model_index.json for this version of diffusers."""
        parts = {part: [library, classes[0]] for part, (library, classes) in self.parts.items()}
        return {"_class_name": self.pipelines[0], "_diffusers_version": version, **parts}


OPEN = Family(
    pipelines=("StableAudioPipeline",),
    parts={
        "transformer": ("diffusers", ("StableAudioDiTModel",)),
        "projection_model": ("stable_audio", ("StableAudioProjectionModel",)),
        "vae": ("diffusers", ("AutoencoderOobleck",)),
        "scheduler": ("diffusers", ("CosineDPMSolverMultistepScheduler",)),
        NETWORK_FOLDER: ("transformers", ("T5EncoderModel",)),
        TOKENIZER_FOLDER: ("transformers", ("T5TokenizerFast", "T5Tokenizer")),
    },
    codec="oobleck",
)
THIRD = Family(
    pipelines=("StableAudio3Pipeline", "StableAudio3InpaintPipeline", "StableAudio3AudioToAudioPipeline"),
    parts={
        "transformer": ("diffusers", ("StableAudio3DiTModel",)),
        "duration_embedder": ("stable_audio_3", ("StableAudio3DurationEmbedder",)),
        "vae": ("diffusers", ("AutoencoderSAME",)),
        "scheduler": ("diffusers", ("FlowMatchEulerDiscreteScheduler",)),
        NETWORK_FOLDER: ("transformers", ("T5GemmaEncoderModel",)),
        TOKENIZER_FOLDER: ("transformers", ("GemmaTokenizerFast", "GemmaTokenizer")),
    },
    codec="same",
)


def find_family(folder: Path) -> Family:
    """Return what a pipeline is made of. Raise SpecError unless it is one of Stable Audio."""
    families = {name: family for family in (OPEN, THIRD) for name in family.pipelines}
    with config_in(folder, INDEX_FILE) as index:
        given = index.take("_class_name", str)
        if given not in families:
            told = f"_class_name is '{given}'; expected one of {', '.join(map(repr, families))}"
            raise SpecError(f"{told}.{did_you_mean(given, families)}")
        family = families[given]
        for part, (library, classes) in family.parts.items():
            _check_part(part, index.take(part, list[Any]), library, classes)
    return family


def _check_part(part: str, given: list[Any], library: str, classes: tuple[str, ...]) -> None:
    """Raise SpecError unless a part has one of these classes, or is a part of transformers that is left out."""
    is_absent = given == [None, None] and library == "transformers"
    if not is_absent and (len(given) != 2 or given[1] not in classes):
        near = did_you_mean(str(given[-1]), classes) if given else ""
        expected = f"{[library, classes[0]]}, the only one that {MODEL} has"
        raise SpecError(f"{part} is {shown(given)}; expected {expected}.{near}")


def read_file(folder: Path, name: str) -> Any:
    """Return the contents of a JSON file of a pipeline. Raise SpecError if it cannot be read."""
    file = folder / name
    if not file.is_file():
        expected = "all files of a diffusers pipeline, as save_pretrained writes it"
        raise SpecError(f"'{folder}' has no {name}; expected {expected}")
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise SpecError(f"'{file}' cannot be read as JSON: {message_of(error)}") from error


@contextmanager
def config_in(folder: Path, name: str, *, others: bool = False) -> Iterator[Section]:
    """Yield the config in a file, and name the file in errors about it. Unless `others` is set, every key has to be
    read.

    Raise SpecError if the file cannot be read.
    """
    tree = read_file(folder, name)
    try:
        section = Section(tree, "")
        yield section
        section.close(unused=_PRIVATE, others=others)
    except SpecError as error:
        raise SpecError(f"'{folder / name}': {error}") from error


def expect_class(section: Section, name: str) -> None:
    """Raise SpecError unless a config is that of this class."""
    given = section.take("_class_name", str)
    if given != name:
        raise SpecError(f"_class_name is '{given}'; expected '{name}'.{did_you_mean(given, [name])}")


def check_agreement(section: Section, values: Mapping[str, tuple[int, int]]) -> None:
    """Raise SpecError for the first key that does not have the value that the rest of the pipeline implies.

    Args:
        section: the config.
        values: key → its default, and the value.
    """
    for name, (default, expected) in values.items():
        given = section.take(name, int, default)
        if given != expected:
            raise SpecError(f"{name} is {given}; expected {expected}, to agree with the rest of the pipeline")
