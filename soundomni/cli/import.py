"""`soundomni import`: turn other people's checkpoints and configs into parts of our models. Each kind has its own file.

No import statement can name this module, because its name is a keyword; the command line imports commands by name.
"""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

HELP = "convert published weights into parts that a spec can name"

KINDS = {
    "stable-audio": "soundomni.cli.importing.stable_audio",
    "stable-audio-vae": "soundomni.cli.importing.stable_audio_vae",
    "stable-audio-lora": "soundomni.cli.importing.stable_audio_lora",
    "sat-config": "soundomni.cli.importing.sat_config",
    "same": "soundomni.cli.importing.same",
    "dac": "soundomni.cli.importing.dac",
    "encodec": "soundomni.cli.importing.encodec",
    "mimi": "soundomni.cli.importing.mimi",
    "hubert-kmeans": "soundomni.cli.importing.hubert_kmeans",
    "qwen2-audio": "soundomni.cli.importing.qwen2_audio",
    "bagel": "soundomni.cli.importing.bagel",
    "soundomni": "soundomni.cli.importing.soundomni",
}
"""Kind of checkpoint or config → its module, which has HELP, `configure` and `run` like the module of a command."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the kinds."""
    actions = parser.add_subparsers(dest="kind", required=True, metavar="|".join(KINDS))
    for kind in KINDS:
        module = _module(kind)
        module.configure(actions.add_parser(kind, help=module.HELP, description=f"{module.HELP[0].upper()}{module.HELP[1:]}."))


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Import a checkpoint of the kind that the arguments name."""
    status: int = _module(args.kind).run(args, overrides)
    return status


def _module(kind: str) -> ModuleType:
    return importlib.import_module(KINDS[kind])
