"""`soundomni import sat-config`: translate stable-audio-tools' configs into a spec."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.cli.folders import expanded
from soundomni.cli.importing.common import told
from soundomni.cli.parsing import reads_no_spec

if TYPE_CHECKING:
    from soundomni.core.pretrained.config_sections import Section, Translation
    from soundomni.core.spec.schema import Slot, Spec
    from soundomni.data.stable_audio_config import Clips

HELP = "translate stable-audio-tools' model and dataset configs into a spec that `soundomni train` takes"
AUTOENCODER = "autoencoder"
BATCH_SIZE = 4
COLUMNS = 118
OTHERS = {
    "diffusion_uncond": "models without conditions",
    "diffusion_autoencoder": "autoencoders that decode by diffusion",
    "diffusion_prior": "diffusion from one kind of audio to another",
    "lm": "language models of codes; the specs audiolm-coarse and soundstorm train such models",
}
"""Model type that cannot be translated → what it is."""
UNETS = {"adp_cfg_1d": "audio-diffusion-pytorch", "adp_1d": "audio-diffusion-pytorch", "DAU1d": "Dance Diffusion"}
"""Network type that cannot be translated → the project whose U-Net it is."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    reads_no_spec(parser)
    parser.add_argument("source", metavar="JSON", help="model config; model_type autoencoder, diffusion_cond or diffusion_cond_inpaint")
    parser.add_argument("--out", required=True, metavar="YAML", help="spec to write")
    parser.add_argument("--dataset", type=expanded, metavar="JSON", help="dataset config (default: the spec has no data yet)")
    parser.add_argument(
        "--codec",
        type=expanded,
        metavar="DIR",
        help="codec of a diffusion model, from `soundomni import stable-audio-vae` or a finished run (default: the "
        "one the config describes, without weights)",
    )
    parser.add_argument(
        "--text-encoder",
        metavar="NAME",
        help="folder or Hub repository of the T5 or CLAP that reads prompts (default: the T5 that the config names, in your Hub cache)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help=f"how many clips of sample_size samples fit in a batch (default: {BATCH_SIZE}, as in stable-audio-tools)",
    )


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the spec, and print what was ignored or works differently here."""
    from soundomni.cli.console import emit
    from soundomni.cli.folders import user_path
    from soundomni.core.errors import SpecError
    from soundomni.core.files.whole_files import write_whole

    out = user_path(args.out)
    if out.exists():
        raise SpecError(f"'{args.out}' already exists; give --out a new file")
    if out.suffix not in (".yaml", ".yml"):
        raise SpecError(f"--out is '{args.out}'; expected a file that ends in .yaml, as specs do")
    if args.batch_size < 1:
        raise SpecError(f"--batch-size is {args.batch_size}; expected at least 1")
    translation = _translated(args, run_dir=f"runs/{out.stem}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, _written(args, translation))
    except OSError as error:
        raise SpecError(f"cannot write '{args.out}': {error.strerror or error}") from error
    result = {"out": str(args.out), "notes": list(translation.notes), "spec": translation.layer}
    emit(args, result, text="\n".join([f"{args.out}: train it with `soundomni train --config {args.out}`", *translation.notes]))
    return 0


def _translated(args: argparse.Namespace, *, run_dir: str) -> Translation:
    """Return the whole spec, with its plugins and keys checked."""
    from soundomni.core.pretrained.config_sections import Translation
    from soundomni.core.spec.load import load_spec
    from soundomni.data.stable_audio_config import read_datasets

    file = Path(args.source)
    tree = _read(file)
    model, clips = told(lambda: _model(tree, args), file)
    parts = [model]
    if args.dataset is None:
        parts.append(Translation({}, ("there is no dataset config: name your clips in data.datasets",)))
    else:
        dataset = Path(args.dataset)
        given = _read(dataset)
        parts.append(told(lambda: read_datasets(given, clips), dataset))
    layer = _joined([{"train": {"run_dir": run_dir}}, *(part.layer for part in parts)])
    placeholder: dict[str, Any] = {"data": {"datasets": {"placeholder": {"source": "toy-sounds"}}}}
    spec = load_spec([layer] if args.dataset is not None else [placeholder, layer], base={})
    told(lambda: _check_trainable(spec), file)
    return Translation(layer, tuple(note for part in parts for note in part.notes))


def _check_trainable(spec: Spec) -> None:
    """Raise SpecError if training would refuse the numbers of a spec; its text encoder need not be on this machine."""
    from soundomni.core.errors import SpecError
    from soundomni.core.spec.registry import build
    from soundomni.train.preflight import check_settings, check_spec

    try:
        if spec.codec is not None:
            check_spec(spec)
            return
        check_settings(spec)
        for one in spec.of_model.all_made.values():
            assert one.objective is not None, "it is made"
            build("objective", one.objective)
        for one in spec.of_model.used.values():
            if one.encoder is not None and one.encoder.class_path == "number":
                build("encoder", one.encoder)
    except SpecError as error:
        raise SpecError(f"it describes a training that cannot run: {error}") from error


def _model(tree: Any, args: argparse.Namespace) -> tuple[Translation, Clips]:
    """Return everything but the data, and what the clips must be like."""
    from soundomni.core.errors import SpecError, did_you_mean
    from soundomni.core.pretrained.config_sections import Section
    from soundomni.experts.checkpoints.stable_audio_model_config import KINDS

    top = Section(tree, "")
    kind, training = top.take("model_type", str), top.section("training")
    known = (AUTOENCODER, *KINDS)
    if kind not in known:
        what = f" ({OTHERS[kind]}), which is not translated" if kind in OTHERS else ""
        near = "" if kind in OTHERS else did_you_mean(kind, known)
        raise SpecError(f"model_type is '{kind}'{what}; expected {', '.join(known[:-1])} or {known[-1]}.{near}")
    if "training" not in top:
        raise SpecError("training: missing; expected the settings of a run. `soundomni import stable-audio` reads configs of weights")
    if kind == AUTOENCODER:
        for name, value in {"--codec": args.codec, "--text-encoder": args.text_encoder}.items():
            if value is not None:
                raise SpecError(f"{name} is given, but model_type is '{AUTOENCODER}', which trains a codec. Leave it out")
        return _autoencoder(tree, training, args.batch_size)
    return _diffusion(tree, training, args)


def _autoencoder(tree: Any, training: Section, batch_size: int) -> tuple[Translation, Clips]:
    from soundomni.core.pretrained.config_sections import Section, Translation
    from soundomni.train.stable_audio_settings import own_steps, read_run
    from soundomni.vae.checkpoints.stable_audio_training import SPECTROGRAM, read_autoencoder

    codec = read_autoencoder(tree, training)
    learns = SPECTROGRAM in codec.layer["codec"]["critics"]
    networks = ("autoencoder", "discriminator") if learns else ("autoencoder",)
    run = read_run(training, networks)
    demo = training.section("demo")
    train: dict[str, Any] = {}
    if "demo" in training:
        train["validation"] = {"every": own_steps(demo.take("demo_every", int, 2000), len(networks))}
    notes = demo.ignore({"max_num_sample": "num_describe says how many clips are reconstructed"})
    demo.close()
    training.close()
    clips, budget = _clips(_slot(codec.layer["codec"]["codec"]), Section(tree, "").take("sample_size", int), batch_size)
    layer = _joined([codec.layer, {"data": {"tokens_per_batch": budget}}, run.layer, {"train": train}])
    return Translation(layer, (*codec.notes, *run.notes, *notes)), clips


def _diffusion(tree: Any, training: Section, args: argparse.Namespace) -> tuple[Translation, Clips]:
    from dataclasses import replace

    from soundomni.core.pretrained.config_sections import Section, Translation
    from soundomni.experts.checkpoints.stable_audio_training import read_diffusion
    from soundomni.train.stable_audio_settings import read_run

    _check_network(Section(tree, "").section("model").section("diffusion"))
    slot, notes = _codec(tree, args.codec)
    plain = {"class_path": slot.class_path, "init_args": slot.init_args}
    model = read_diffusion(tree, training, codec=plain, text_encoder=args.text_encoder)
    run = read_run(training, ("diffusion",))
    training.close()
    config = model.config
    clips, budget = _clips(slot, config.sample_size, args.batch_size, model.condition_tokens)
    _check_codec(
        slot, clips, {"sample_rate": config.sample_rate, "audio_channels": config.channels, "model.io_channels": config.latent_dim}
    )
    layer = _joined([model.translation.layer, {"data": {"tokens_per_batch": budget}}, run.layer])
    clips = replace(clips, tasks=model.tasks, captions=model.has_text)
    return Translation(layer, (*notes, *model.translation.notes, *run.notes)), clips


def _check_network(diffusion: Section) -> None:
    """Raise SpecError if the network is not a transformer."""
    from soundomni.core.errors import SpecError, did_you_mean

    kind = diffusion.take("type", str)
    if kind != "dit":
        what = f" (the U-Net of {UNETS[kind]}), which is not translated" if kind in UNETS else ""
        raise SpecError(f"{diffusion.key}.type is '{kind}'{what}; expected 'dit'.{'' if what else did_you_mean(kind, ['dit'])}")


def _codec(tree: Any, folder: str | None) -> tuple[Slot, list[str]]:
    """Return the codec of a diffusion model, which samples latents unless clips are encoded beforehand, and notes about
    it."""
    from soundomni.core.errors import SpecError
    from soundomni.core.pretrained.config_sections import Section
    from soundomni.core.spec.schema import Slot
    from soundomni.vae.checkpoints.stable_audio_config import parse_config

    if "pretransform" not in Section(tree, "").section("model"):
        raise SpecError("model.pretransform: missing; expected an autoencoder, because the backbone dit works on latents")
    encoded = Section(tree, "").section("training").take("pre_encoded", bool, False)
    if folder is not None:
        slot = _codec_of(Path(folder))
        drawn = {"sample_latents": not encoded} if slot.class_path == "oobleck" else {}
        return Slot(slot.class_path, {**slot.init_args, **drawn}), [f"model.pretransform is the codec in '{folder}'"]
    config = parse_config(tree)
    missing = "the codec has no weights yet: give --codec, or set model.modalities.latent.codec.weights"
    return Slot("oobleck", {**config.init_args, "sample_latents": not encoded}), [*config.notes, missing]


def _codec_of(folder: Path) -> Slot:
    """Return the slot of the codec in a directory, with its weights. Raise SpecError if there is no codec."""
    from soundomni.core.errors import SpecError
    from soundomni.core.files.names import SPEC_FILE
    from soundomni.core.spec.load import load_spec
    from soundomni.core.spec.schema import Slot
    from soundomni.train.run_directory.files import CODEC_FILE
    from soundomni.vae.checkpoints.codec_directory import LAYER_FILE, read_layer

    if (folder / LAYER_FILE).is_file():
        return read_layer(folder)
    weights = folder / CODEC_FILE
    if not weights.is_file() or not (folder / SPEC_FILE).is_file():
        expected = f"expected a directory with {LAYER_FILE}, or with the {CODEC_FILE} of a finished run"
        raise SpecError(f"--codec is '{folder}'; {expected}. `soundomni import stable-audio-vae` and `soundomni train` make one")
    spec = load_spec([folder / SPEC_FILE], base={})
    slot = spec.codec.codec if spec.codec is not None else spec.of_model.codec
    return Slot(slot.class_path, {**slot.init_args, "weights": str(weights.resolve())})


def _slot(plain: dict[str, Any]) -> Slot:
    from soundomni.core.spec.schema import Slot

    return Slot(plain["class_path"], plain["init_args"])


def _clips(slot: Slot, sample_size: int, batch_size: int, condition_tokens: int = 0) -> tuple[Clips, int]:
    """Return what clips must be like for a codec, and the tokens of a batch of `batch_size` clips."""
    from soundomni.core.errors import SpecError
    from soundomni.data.stable_audio_config import Clips, in_seconds

    if sample_size < 1:
        raise SpecError(f"sample_size is {sample_size}; expected at least 1")
    spec = _spec_of(slot)
    clips = Clips(
        sample_rate=spec.sample_rate,
        channels=spec.channels,
        downsampling_ratio=spec.downsampling_ratio,
        seconds=in_seconds(sample_size, spec.sample_rate),
        tasks=None,
        captions=False,
    )
    return clips, batch_size * (spec.num_frames(sample_size) + 2 + condition_tokens)


def _spec_of(slot: Slot) -> Any:
    """Return the spec of what a codec produces, without reading its weights."""
    from soundomni.core.assembly.uninitialized import without_memory
    from soundomni.core.pretrained.directory import without_weights
    from soundomni.core.spec.registry import build

    with without_memory():
        codec: Any = build("codec", without_weights(slot))
    return codec.spec


def _check_codec(slot: Slot, clips: Clips, expected: dict[str, int]) -> None:
    """Raise SpecError if a codec is not the one a config describes."""
    from soundomni.core.errors import SpecError

    given = dict(zip(expected, (clips.sample_rate, clips.channels, _spec_of(slot).token_dim), strict=True))
    for key, value in expected.items():
        if value != given[key]:
            cure = f"expected {given[key]}, to match the codec '{slot.class_path}'. Give this model's own codec with --codec"
            raise SpecError(f"{key} is {value}; {cure}")


def _joined(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge layers; later ones override earlier ones."""
    from soundomni.core.spec.merge import merge

    tree: dict[str, Any] = {}
    for layer in layers:
        tree = merge(tree, layer, Any)
    order = ("model", "codec", "data", "train")
    return {name: tree[name] for name in order if name in tree}


def _written(args: argparse.Namespace, translation: Translation) -> str:
    """Return the text of the spec file: the notes as comments, then the spec."""
    import textwrap

    from soundomni.core.errors import one_line
    from soundomni.core.spec import yaml_text

    sources = [Path(args.source).name] + ([Path(args.dataset).name] if args.dataset is not None else [])
    first = f"Translated by `soundomni import sat-config` from stable-audio-tools' {' and '.join(sources)}."
    lines = [f"# {line}" for line in textwrap.wrap(one_line(first), COLUMNS)]
    for note in translation.notes:
        lines += textwrap.wrap(one_line(note), COLUMNS, initial_indent="# - ", subsequent_indent="#   ")
    return "\n".join(lines) + "\n" + yaml_text.render(translation.layer)


def _read(file: Path) -> Any:
    """Return the parsed contents of a file. Raise SpecError if it cannot be read."""
    from soundomni.core.errors import SpecError, message_of
    from soundomni.core.files.small_files import read_json

    if not file.is_file():
        raise SpecError(f"there is no file '{file}'; expected a config of stable-audio-tools, such as model_config.json")
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise SpecError(f"'{file}' cannot be read as JSON: {message_of(error)}") from error
