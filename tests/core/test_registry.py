"""Plugins through real entry points: distributions written to disk and found by importlib.metadata."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from soundomni.core import interfaces
from soundomni.core.errors import PluginError, SpecError
from soundomni.core.spec import registry
from soundomni.core.spec.arguments import argument_texts
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.spec.shorthand import model_of
from soundomni.core.spec.written import ConnectorsSpec, WrittenModel

ROOT = Path(__file__).parents[2]

CODEC = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
import torch
from soundomni.core.interfaces import Codec
from soundomni.core.representation import Representation, RepresentationSpec


@dataclass(frozen=True)
class Window:
    size: int
    shape: Literal["sine", "hann"] = "sine"


class FrameCodec(Codec):
    """Frames of samples as latents.

    Args:
        frame_size: D, samples per frame.
        window: of each frame.
    """

    def __init__(self, *, frame_size: int = 4, gain: float = 1.0, window: Window | None = None, rates: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        if frame_size < 1:
            raise ValueError(f"frame_size must be at least 1,\\n{frame_size} was given")
        self.frame_size, self.gain, self.window, self.rates = frame_size, gain, window, rates

    @property
    def spec(self) -> RepresentationSpec:
        return RepresentationSpec(
            kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=self.frame_size, latent_dim=self.frame_size
        )

    def encode(self, waveform, lengths):
        frames = waveform[:, 0].unfold(1, self.frame_size, self.frame_size).transpose(1, 2) * self.gain
        return Representation(frames, lengths // self.frame_size, self.spec)

    def decode(self, representation):
        return (representation.values / self.gain).transpose(1, 2).flatten(1)[:, None]
'''

SAMPLERS = """
from dataclasses import dataclass, field
from soundomni.core.interfaces import Sampler

class _Base(Sampler):
    def num_evaluations(self, start):
        return 1

    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        return start

class Keywords(_Base):
    def __init__(self, *, num_steps: int = 1, **rest: int) -> None: ...

class Positions(_Base):
    def __init__(self, *steps: int) -> None: ...

class Untyped(_Base):
    def __init__(self, *, num_steps=3) -> None: ...

class NamesCode(_Base):
    def __init__(self, *, schedule: type[_Base]) -> None: ...

class WrongDefault(_Base):
    def __init__(self, *, num_steps: int = None) -> None: ...

class Unresolved(_Base):
    def __init__(self, *, num_steps: "Missing" = 1) -> None: ...

@dataclass
class Factory(_Base):
    orders: list[int] = field(default_factory=lambda: [1, 2])

class NotASampler:
    pass

class Fine(_Base):
    pass
"""

CONNECTOR = """
from soundomni.core.interfaces import Connector
from soundomni.core.representation import TokenSpec

class Half(Connector):
    def __init__(self, *, tokens: TokenSpec, hidden_dim: int) -> None: ...
"""


@pytest.fixture
def acme(install):
    return install("acme-audio", groups={"soundomni.codecs": {"acme": "acme_codec:FrameCodec"}}, modules={"acme_codec": CODEC})


@pytest.fixture
def samplers(install):
    names = ("Keywords", "Positions", "Untyped", "NamesCode", "WrongDefault", "Unresolved", "NotASampler", "Fine", "Absent", "Factory")
    points = {name.lower(): f"acme_samplers:{name}" for name in names}
    install("acme-samplers", groups={"soundomni.samplers": points}, modules={"acme_samplers": SAMPLERS})


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises((PluginError, SpecError)) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_kinds_are_those_of_the_contracts():
    assert set(registry.KINDS) == set(interfaces.KINDS)


def test_every_declared_entry_point_is_found():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(declared) <= {f"soundomni.{kind}s" for kind in registry.KINDS}
    for kind in registry.KINDS:
        found = {entry.name: entry.target for entry in registry.entries(kind) if entry.distribution == "soundomni"}
        assert found == declared.get(f"soundomni.{kind}s", {})


def test_third_party_plugin_is_found_built_and_named(acme):
    entry = registry.find("codec", "acme")
    assert (entry.distribution, entry.version, entry.target) == ("acme-audio", "1.2.3", "acme_codec:FrameCodec")
    assert registry.find("codec", "Acme_Audio:acme") == entry  # distribution names are compared as installers compare them
    slot = Slot("acme", {"frame_size": 2, "gain": 2, "window": {"size": 7, "shape": "hann"}, "rates": [3]})
    codec = registry.build("codec", slot)
    waveform = torch.arange(8.0).reshape(1, 1, 8)
    assert torch.equal(codec.decode(codec.encode(waveform, torch.tensor([8]))), waveform)
    assert isinstance(codec.gain, float) and codec.rates == (3,)
    assert (codec.window.size, codec.window.shape) == (7, "hann")
    assert registry.name_of("codec", type(codec)) == "acme"


def test_discovery_imports_nothing(acme):
    script = "import sys; from soundomni.core.spec import registry; e = registry.find('codec', 'acme'); "
    script += "print(sorted({'torch', 'numpy', 'jsonargparse', 'acme_codec', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": str(acme)}, check=True)
    assert done.stdout.strip() == "[]"


def test_resolved_arguments_are_plain_and_stable(acme):
    full = registry.validate_init_args("codec", Slot("acme", {"window": {"size": 7}}))
    assert full == {"frame_size": 4, "gain": 1.0, "window": {"size": 7, "shape": "sine"}, "rates": [1, 2]}
    assert registry.validate_init_args("codec", Slot("acme", full)) == full


@pytest.mark.parametrize(
    ("init_args", "expected"),
    [
        (
            {"frame_siz": 3},
            "codec 'acme' has no argument 'frame_siz'. Did you mean 'frame_size'? It takes: frame_size, gain, window, rates",
        ),
        ({"frame_size": "abc"}, "codec 'acme': frame_size is 'abc'; expected a whole number"),
        ({"frame_size": True}, "codec 'acme': frame_size is True; expected a whole number"),
        ({"rates": [1, "x"]}, "codec 'acme': rates[1] is 'x'; expected a whole number"),
        ({"window": {}}, "codec 'acme': window.size is missing. Add it to the spec"),
        (
            {"window": {"size": 1, "shape": "sin"}},
            "codec 'acme': window.shape is 'sin'; expected one of sine, hann. Did you mean 'sine'?",
        ),
        ({"frame_size": 0}, "codec 'acme': frame_size must be at least 1, 0 was given"),
    ],
)
def test_wrong_arguments_end_in_one_line(acme, init_args, expected):
    assert refusal(registry.build, "codec", Slot("acme", init_args)) == expected


def test_runtime_arguments_belong_to_the_assembly():
    message = refusal(registry.validate_init_args, "connector", Slot("mlp", {"hidden_dim": 3}))
    assert message == "connector 'mlp': 'hidden_dim' is set by the assembly, not by a spec. Remove it"


def test_missing_argument_is_named(install):
    source = SAMPLERS + "\nclass Needs(_Base):\n    def __init__(self, *, num_steps: int, order: int) -> None: ...\n"
    install("acme-needs", groups={"soundomni.samplers": {"needs": "acme_needs:Needs"}}, modules={"acme_needs": source})
    assert (
        refusal(registry.build, "sampler", Slot("needs", {"order": 1})) == "sampler 'needs': missing argument num_steps. Add it to the spec"
    )


def test_unknown_names_and_kinds():
    assert refusal(registry.find, "sampler", "eular").startswith("unknown sampler 'eular'. Did you mean 'euler'? Installed: ")
    assert "Did you mean 'soundomni:heun'?" in refusal(registry.find, "sampler", "soundomni:huen")
    assert refusal(registry.entries, "codek").startswith("unknown kind of plugin 'codek'. Did you mean 'codec'?")


def test_a_name_of_two_distributions_must_be_qualified(acme, install):
    install("other-audio", groups={"soundomni.codecs": {"acme": "other_codec:FrameCodec"}}, modules={"other_codec": CODEC})
    assert refusal(registry.load, "codec", "acme") == (
        "codec 'acme' is claimed by several distributions. Write one of: acme-audio:acme, other-audio:acme"
    )
    cls = registry.load("codec", "other-audio:acme")
    assert cls.__module__ == "other_codec"
    assert registry.name_of("codec", cls) == "other-audio:acme"


def test_one_distribution_found_twice_is_not_ambiguous(acme, install):
    install(
        "Acme.Audio",
        groups={"soundomni.codecs": {"acme": "acme_codec:FrameCodec"}},
        modules={"acme_codec": CODEC},
        version="1.2.4",
        folder="editable",
    )
    assert registry.find("codec", "acme").version == "1.2.4"  # the first on sys.path, which is the one that imports


def test_broken_plugin_is_named_and_hurts_no_other(acme, install):
    install(
        "broken-audio", groups={"soundomni.codecs": {"broken": "broken_codec:Codec"}}, modules={"broken_codec": "import no_such_module"}
    )
    assert {"acme", "broken"} <= {entry.name for entry in registry.entries("codec")}
    assert registry.load("codec", "acme").__name__ == "FrameCodec"
    assert refusal(registry.load, "codec", "broken") == (
        "codec 'broken' of broken-audio 1.2.3 cannot be imported from 'broken_codec:Codec': "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )


@pytest.mark.parametrize(
    ("name", "clause"),
    [
        ("keywords", "its constructor takes '**rest: int'"),
        ("positions", "its constructor takes '*steps: int'"),
        ("untyped", "its constructor's argument 'num_steps' has no type"),
        ("namescode", "its argument 'schedule' has the type"),
        ("wrongdefault", "the default of its argument 'num_steps' is not of its type: default is None; expected a whole number"),
        ("unresolved", "the type of its argument 'num_steps' cannot be resolved: name 'Missing' is not defined"),
        ("notasampler", "is not a Sampler: 'acme_samplers:NotASampler' must be a subclass of soundomni.core.interfaces.Sampler"),
        ("absent", "cannot be imported from 'acme_samplers:Absent': AttributeError"),
    ],
)
def test_a_broken_contract_is_refused_by_its_clause(samplers, name, clause):
    message = refusal(registry.load, "sampler", name)
    assert message.startswith(f"sampler '{name}' of acme-samplers 1.2.3 ") and clause in message


def test_a_plugin_without_a_constructor_takes_nothing(samplers):
    assert registry.arguments("sampler", registry.load("sampler", "fine")) == ()
    assert "It takes no arguments" in refusal(registry.build, "sampler", Slot("fine", {"num_steps": 1}))


def test_a_dataclass_is_a_plugin_with_its_default_factories(samplers):
    assert registry.validate_init_args("sampler", Slot("factory")) == {"orders": [1, 2]}
    assert registry.build("sampler", Slot("factory", {"orders": [3]})).orders == [3]


def test_an_argument_is_described_by_the_nearest_class_that_names_it():
    class Base:
        """A base.

        Args:
            size, shift: of the base.
        """

    class Child(Base):
        """A child.

        Args:
            shift: of the child,
                on two lines.
        """

    class Silent(Child):
        pass

    for cls in (Child, Silent):
        assert argument_texts(cls) == {"size": "of the base.", "shift": "of the child, on two lines."}
    assert argument_texts(Base) == {"size": "of the base.", "shift": "of the base."}


def test_a_connector_must_take_what_the_assembly_passes(install):
    install("half", groups={"soundomni.connectors": {"half": "half_connector:Half"}}, modules={"half_connector": CONNECTOR})
    assert "its constructor lacks 'generates', which the assembly passes" in refusal(registry.load, "connector", "half")


def test_import_paths_need_trust(acme):
    path = "acme_codec.FrameCodec"
    assert refusal(registry.load, "codec", path).endswith("model directories can never use them")
    assert "acme_codec" not in sys.modules
    cls = registry.load("codec", path, trust_class_paths=True)
    assert cls.__name__ == "FrameCodec"
    assert "is not a Codec" in refusal(registry.load, "codec", "collections.Counter", trust_class_paths=True)


def test_data_never_names_code(acme):
    """A mapping that looks like a class path stays a mapping, whatever the annotation."""
    init_args = {"window": {"class_path": "acme_codec.Window", "init_args": {"size": 1}}}
    assert "unknown key" in refusal(registry.build, "codec", Slot("acme", init_args))


def test_lock_lists_the_distributions_of_a_spec(acme):
    written = WrittenModel(
        backbone=Slot("mot"),
        router=Slot("dense"),
        codec=Slot("acme"),
        connectors=ConnectorsSpec(latent=Slot("linear")),
        objective=Slot("flow-matching"),
    )
    ours = {"distribution": "soundomni", "version": registry.find("codec", "mdct").version}
    locked = registry.lock(Spec(model=model_of(written, sampler=Slot("euler"))))
    assert locked == [{"distribution": "acme-audio", "version": "1.2.3"}, ours]
