"""A plugin of others that fails in any way is named in the one line that a command ends with."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from soundomni.cli.main import main
from tests.cli.conftest import TINY

BREAKABLE = '''
"""Every kind of plugin, which works until FAIL says what happens when a method is called."""

import functools

from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.core.interfaces import Tracker
from soundomni.experts.connectors.linear import LinearConnector
from soundomni.experts.log_mel import LogMelEncoder
from soundomni.experts.modality import ModalityRouter
from soundomni.experts.mot import MoTBackbone
from soundomni.flow.euler import EulerSampler
from soundomni.flow.flow_matching import FlowMatching
from soundomni.train.optimizers.adamw import AdamW
from soundomni.vae.mdct import MDCTCodec

FAIL = {}


def call(place, method, self, *args, **kwargs):
    return FAIL[place]() if place in FAIL else method(self, *args, **kwargs)


def breakable(*names):
    def change(cls):
        for name in names:
            method = getattr(cls, name)

            def changed(self, *args, method=method, place=f"{cls.__name__.lower()}.{name}", **kwargs):
                return call(place, method, self, *args, **kwargs)

            setattr(cls, name, functools.wraps(method)(changed))
        return cls

    return change


@breakable("encode", "decode")
class Codec(MDCTCodec):
    pass


@breakable("forward", "num_tokens")
class Encoder(LogMelEncoder):
    pass


@breakable("enter", "leave")
class Connector(LinearConnector):
    pass


@breakable("stream_of", "feed_forward")
class Router(ModalityRouter):
    pass


@breakable("forward", "embed", "head")
class Backbone(MoTBackbone):
    pass


@breakable("corrupt", "loss")
class Objective(FlowMatching):
    pass


@breakable("sample")
class Sampler(EulerSampler):
    pass


@breakable("item", "load", "__len__")
class Dataset(ToySounds):
    pass


@breakable("build")
class Optimizer(AdamW):
    pass
'''
KINDS = ("backbone", "router", "codec", "encoder", "connector", "objective", "sampler", "dataset", "optimizer")


@pytest.fixture
def breakable(install: Callable[..., Path]) -> dict[str, Callable[[], Any]]:
    """Installs the plugins and returns what says how they fail."""
    groups = {f"soundomni.{kind}s": {f"acme-{kind}": f"acme_breakable:{kind.capitalize()}"} for kind in KINDS}
    install("acme-audio", groups=groups, modules={"acme_breakable": BREAKABLE})
    import acme_breakable

    return acme_breakable.FAIL


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """The tiny spec with all parts by acme-audio."""
    text = TINY.replace("RUN", str(tmp_path / "run")).replace("steps: 4", "steps: 2").replace("save_every: 2", "save_every: 0")
    for ours, kind in [("mot", "backbone"), ("mdct", "codec"), ("log-mel", "encoder"), ("euler", "sampler"), ("toy-sounds", "dataset")]:
        text = text.replace(f"class_path: {ours}", f"class_path: acme-{kind}")
    text = text.replace("router: modality", "router: acme-router").replace("linear", "acme-connector")
    text = text.replace("objective: flow-matching", "objective: acme-objective").replace("{lr:", "{rule: acme-optimizer, lr:")
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return str(path)


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


class Panic(BaseException):
    """An error that is no Exception, as extensions in other languages raise them."""


HOW: dict[str, tuple[Callable[[], Any], str]] = {
    "raises": (raising(KeyError("one\ntwo")), "failed: KeyError: 'one\\ntwo'"),
    "exits": (lambda: sys.exit(0), "failed: sys.exit(0) was called"),
    "exits with text": (lambda: sys.exit("no licence\nfound"), "failed: sys.exit('no licence\\nfound') was called"),
    "loses its host": (raising(ConnectionResetError("no route")), "failed: ConnectionResetError: no route"),
    "loses its pipe": (raising(BrokenPipeError("gone")), "failed: BrokenPipeError: gone"),
    "panics": (raising(Panic("range")), "failed: Panic: range"),
}


@pytest.mark.parametrize(
    ("place", "how"),
    [
        ("backbone.forward", "raises"),
        ("backbone.head", "panics"),
        ("router.stream_of", "exits"),
        ("codec.encode", "exits with text"),
        ("encoder.num_tokens", "raises"),
        ("connector.leave", "exits"),
        ("objective.corrupt", "loses its pipe"),
        ("dataset.item", "panics"),
        ("dataset.load", "loses its host"),
        ("optimizer.build", "raises"),
    ],
)
def test_a_plugin_that_fails_in_training_is_named(
    breakable: dict[str, Callable[[], Any]], spec: str, capsys: pytest.CaptureFixture[str], place: str, how: str
) -> None:
    breakable[place], expected = HOW[how]
    assert main(["train", "--config", spec, "--train.validation.every=0", "--json"]) == 1
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    kind = place.partition(".")[0]
    assert line.startswith(f"soundomni: error: {kind} 'acme-{kind}' of acme-audio 1.2.3 {expected}")
    assert json.loads(out)["error"] in line and "Traceback" not in err


def test_a_wrong_answer_of_a_plugin_names_what_is_in_use(
    breakable: dict[str, Callable[[], Any]], spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    breakable["codec.encode"] = lambda: None
    assert main(["train", "--config", spec, "--train.validation.every=0"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("soundomni: internal error: AttributeError: ") and "codec 'acme-codec' of acme-audio 1.2.3" in line


@pytest.mark.parametrize("how", ["exits", "panics"])
def test_a_plugin_that_fails_in_use_is_named(
    breakable: dict[str, Callable[[], Any]], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    breakable["sampler.sample"], expected = HOW[how]
    command = ["generate", "--model", str(tiny_model), "--prompt", "a tone", "--seconds", "0.3", "--out", str(tmp_path / "clips")]
    assert main([*command, "--sampler=acme-sampler"]) == 1
    assert f"sampler 'acme-sampler' of acme-audio 1.2.3 {expected}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import sys; sys.exit()", "cannot be imported from 'bad_codec:Codec': sys.exit(None) was called"),
        ("raise SystemExit('no GPU')", "cannot be imported from 'bad_codec:Codec': sys.exit('no GPU') was called"),
        ("raise BaseException('stop')", "cannot be imported from 'bad_codec:Codec': BaseException: stop"),
        ("raise BrokenPipeError('x')", "cannot be imported from 'bad_codec:Codec': BrokenPipeError: x"),
        ("def __getattr__(name):\n    raise SystemExit(1)", "cannot be imported from 'bad_codec:Codec': sys.exit(1) was called"),
        ("{base}    def __init__(self) -> None:\n        raise SystemExit(0)", "cannot be constructed: sys.exit(0) was called"),
        ("{base}    def __init__(self) -> None:\n        raise GeneratorExit", "cannot be constructed: GeneratorExit"),
        (
            "import dataclasses, sys\n{base}    __hash__ = object.__hash__\n    x: int = dataclasses.field(default_factory=sys.exit)\n"
            "Codec = dataclasses.dataclass(eq=False)(Codec)",
            "its arguments cannot be read: sys.exit(None) was called",
        ),
    ],
)
def test_a_plugin_that_cannot_be_made_is_named(
    install: Callable[..., Path], spec: str, fails: Any, source: str, expected: str, breakable: object
) -> None:
    base = "from soundomni.vae.mdct import MDCTCodec\nclass Codec(MDCTCodec):\n"
    points = {"soundomni.codecs": {"bad": "bad_codec:Codec"}}
    install("bad-audio", groups=points, modules={"bad_codec": source.replace("{base}", base)})
    line = fails("train", "--config", spec, "--model.codec={class_path: bad}")
    assert "codec 'bad' of bad-audio 1.2.3" in line and expected in line


def test_an_interrupt_from_within_a_plugin_stays_one(install: Callable[..., Path], spec: str, breakable: object) -> None:
    install("bad-audio", groups={"soundomni.codecs": {"bad": "bad_codec:Codec"}}, modules={"bad_codec": "raise KeyboardInterrupt"})
    assert main(["plugins", "show", "codec", "bad"]) == 130


NOISY = """
import atexit, ctypes, os, subprocess, sys
from soundomni.vae.mdct import MDCTCodec
print("printed at import")
os.write(1, b"written at import")
subprocess.run(["echo", "a child"], check=True)
ctypes.CDLL(None).printf(b"left in the buffer of C")
atexit.register(print, "printed at the end")
class Codec(MDCTCodec):
    pass
"""


@pytest.mark.parametrize("name", ["noisy", "absent"])
def test_what_a_plugin_prints_is_no_part_of_the_json(write_distribution: Callable[..., Path], name: str) -> None:
    root = write_distribution(
        "noisy-audio", groups={"soundomni.codecs": {"noisy": "noisy:Codec", "absent": "noisy:No"}}, modules={"noisy": NOISY}
    )
    command = [sys.executable, "-c", "import sys; from soundomni.cli.main import main; sys.exit(main())", "--json", "plugins", "show"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    done = subprocess.run([*command, "codec", name], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == (0 if name == "noisy" else 2)
    assert set(json.loads(done.stdout)) >= ({"init_args"} if name == "noisy" else {"error"})
    for text in ("printed at import", "written at import", "a child", "left in the buffer of C", "printed at the end"):
        assert text in done.stderr


def test_printing_plugins_in_this_process(install: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    source = "import os\nprint('one')\nos.write(1, b'two')\nfrom soundomni.vae.mdct import MDCTCodec as Codec"
    install("noisy-audio", groups={"soundomni.codecs": {"noisy": "noisy:Codec"}}, modules={"noisy": source})
    assert main(["plugins", "show", "codec", "noisy", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["class"] and "one" in err and "two" in err
    print("three")
    os.write(1, b"four")
    assert capfd.readouterr().out in ("three\nfour", "fourthree\n")  # stdout is what it was


@pytest.mark.parametrize("arguments", [["spec", "schema"], ["plugins", "list"], ["spec", "print", "nano"]])
def test_every_result_reaches_stdout_as_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
