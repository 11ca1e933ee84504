"""Whatever the metadata of one distribution holds, the plugins of all others are found, and it is named."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch  # noqa: F401  which fails next to some of these distributions

from soundomni.cli.main import main
from soundomni.core.errors import PluginError
from soundomni.core.spec import registry
from soundomni.core.spec.discovery import only_readable, provider_of

GOOD = "from soundomni.vae.mdct import MDCTCodec\nclass Codec(MDCTCodec): ...\nclass Outer:\n    class Inner(MDCTCodec): ...\n"
METADATA = "Metadata-Version: 2.1\nName: acme-audio\nVersion: 1.2\n"
POINTS = "[soundomni.codecs]\nacme = acme_discovery:Codec\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[..., Path]) -> Path:
    """A folder on sys.path for broken distributions, in front of that of a good one."""
    install("good-audio", groups={"soundomni.codecs": {"good": "acme_discovery:Codec"}}, modules={"acme_discovery": GOOD})
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def write(
    site: Path, *, metadata: str | bytes | None = METADATA, points: str | bytes | None = POINTS, name: str = "acme_audio-1.2.dist-info"
) -> Path:
    info = site / name
    info.mkdir()
    for file, content in (("METADATA", metadata), ("entry_points.txt", points)):
        if content is not None:
            (info / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return info


@pytest.mark.parametrize(
    ("metadata", "points", "reason"),
    [
        (METADATA, "[soundomni.codecs]\nacme\n", "its entry_points.txt is malformed: 'acme' is not NAME = MODULE:CLASS"),
        (METADATA, "[console_scripts]\nx = y\n<<<<<<< HEAD\n", "its entry_points.txt is malformed: '<<<<<<< HEAD' is not"),
        (METADATA, b"[soundomni.codecs]\nacm\xe9 = acme:Codec\n", "its entry_points.txt is not UTF-8"),
        (METADATA, "\ufeff[soundomni.codecs]\nx\n".encode("utf-16"), "its entry_points.txt is not UTF-8"),
        (None, "junk before\n[x]\njunk", "its entry_points.txt is malformed: 'junk' is not"),
    ],
)
def test_a_distribution_that_cannot_be_read_is_named_once(
    site: Path, caplog: pytest.LogCaptureFixture, metadata: str | None, points: str | bytes, reason: str
) -> None:
    info = write(site, metadata=metadata, points=points)
    for _ in range(2):
        assert registry.load("codec", "good").__name__ == "Codec"
    assert [fault.reason.startswith(reason) and str(info) in fault.reason for fault in registry.faults()] == [True]
    (warning,) = caplog.messages
    assert warning.startswith(f"{'acme-audio' if metadata else 'acme_audio'} 1.2: {reason}") and "\n" not in warning


@pytest.mark.parametrize("kind", ["directory", "loop"])
def test_entry_points_that_are_no_file_are_named(site: Path, kind: str) -> None:
    file = write(site, points=None) / "entry_points.txt"
    if kind == "directory":
        file.mkdir()
    else:
        file.symlink_to(file.name)
    assert registry.load("codec", "good")
    (fault,) = registry.faults()
    assert fault.distribution == "acme-audio 1.2" and "its entry_points.txt cannot be read" in fault.reason


@pytest.mark.parametrize(
    ("metadata", "name", "expected"),
    [
        (None, "acme_audio-1.2.dist-info", ("acme_audio", "1.2")),
        ("", "acme_audio-1.2.dist-info", ("acme_audio", "1.2")),
        (b"Name: acm\xe9\n", "acme_audio-1.2.dist-info", ("acme_audio", "1.2")),
        ("Name: acme-audio\n", "acme_audio-1.2.dist-info", ("acme-audio", "1.2")),
        ("Version: 7\n", "acme_audio.dist-info", ("acme_audio", "7")),
        (None, "acme_audio-1.2-py3.11.egg-info", ("acme_audio", "1.2")),
        (None, ".dist-info", ("unknown", "unknown")),
    ],
)
def test_a_distribution_without_name_and_version_goes_by_its_folder(
    site: Path, caplog: pytest.LogCaptureFixture, metadata: str | bytes | None, name: str, expected: tuple[str, str]
) -> None:
    write(site, metadata=metadata, name=name)
    entry = registry.find("codec", "acme")
    assert (entry.distribution, entry.version) == expected
    assert registry.load("codec", "acme") and registry.load("codec", "good")
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(" ".join(expected))


@pytest.mark.parametrize("leftover", ["~cme_audio-1.2.dist-info", "acme_audio-1.2.dist-info", "x.egg-info"])
def test_folders_without_entry_points_concern_nobody(site: Path, caplog: pytest.LogCaptureFixture, leftover: str) -> None:
    (site / leftover).mkdir()
    (site / "file-1.0.dist-info").write_text("a file")
    assert registry.load("codec", "good") and not registry.faults() and not caplog.messages


@pytest.mark.parametrize(
    ("value", "target", "extras"),
    [
        ("acme_discovery:Codec [gpu]", "acme_discovery:Codec", "gpu"),
        ("acme_discovery : Codec[gpu-all, hub]", "acme_discovery:Codec", "gpu-all,hub"),
        ("acme_discovery:Outer.Inner", "acme_discovery:Outer.Inner", ""),
        ("acme_discovery:Codec []", "acme_discovery:Codec", ""),
    ],
)
def test_every_form_of_an_entry_point_is_understood(site: Path, value: str, target: str, extras: str) -> None:
    write(site, points=f"[soundomni.codecs]\n# a comment\n\nacme = {value}\n")
    entry = registry.find("codec", "acme")
    assert (entry.target, entry.extras) == (target, extras)
    cls = registry.load("codec", "acme")
    assert registry.name_of("codec", cls) in ("acme", "good")


@pytest.mark.parametrize("value", ["acme-discovery:Codec", "acme_discovery:Codec()", "acme_discovery Codec", "", ":Codec"])
def test_a_target_of_another_form_is_told_to_who_uses_it(site: Path, value: str) -> None:
    write(site, points=f"[soundomni.codecs]\nacme = {value}\n")
    (fault,) = registry.faults()
    assert f"registers codec 'acme' as '{value}'; expected 'package.module:Class'" in fault.reason
    with pytest.raises(PluginError, match="codec 'acme' of acme-audio 1.2 is registered as "):
        registry.load("codec", "acme")


def test_a_module_is_no_plugin(site: Path) -> None:
    write(site, points="[soundomni.codecs]\nacme = acme_discovery\n")
    with pytest.raises(PluginError, match="is not a Codec: 'acme_discovery' must be a subclass"):
        registry.load("codec", "acme")


def test_a_missing_extra_is_asked_for(site: Path, install: Callable[..., Path]) -> None:
    install("other", groups={}, modules={"needs_gpu": "import no_such_module"})
    write(site, points="[soundomni.codecs]\nacme = needs_gpu:Codec [gpu-all]\n")
    with pytest.raises(PluginError, match=r"No module named 'no_such_module'\. Run `pip install 'acme-audio\[gpu-all\]'`$"):
        registry.load("codec", "acme")


@pytest.mark.parametrize("name", ["my codec", "a:b", "acme.vae", "größer", "'quoted'", "x [y]"])
def test_odd_names_are_found_as_they_are(site: Path, name: str) -> None:
    write(site, points=f"[soundomni.codecs]\n{name} = acme_discovery:Codec\n")
    assert registry.find("codec", name).name == name
    assert registry.load("codec", f"acme-audio:{name}") is registry.load("codec", name)


def test_names_twice_and_no_name_in_one_distribution_are_told(site: Path) -> None:
    write(site, points=POINTS + "acme = acme_discovery:Outer.Inner\n = acme_discovery:Codec\n")
    assert registry.find("codec", "acme").target == "acme_discovery:Codec"
    twice, nameless = (fault.reason for fault in registry.faults())
    assert "registers codec 'acme' twice, as 'acme_discovery:Codec' and as 'acme_discovery:Outer.Inner'" in twice
    assert "without a name" in nameless


def test_the_first_copy_of_a_distribution_counts_as_a_whole(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(site, points=POINTS + "gone = acme_discovery:Gone\n")
    editable = tmp_path / "editable"
    editable.mkdir()
    monkeypatch.syspath_prepend(str(editable))
    write(editable, metadata=METADATA.replace("acme-audio", "Acme.Audio").replace("1.2", "2.0"), name="acme_audio.egg-info")
    assert registry.find("codec", "acme").version == "2.0" and not registry.faults()
    assert "gone" not in {entry.name for entry in registry.entries("codec")}


def test_plugins_list_shows_what_is_broken(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(site, points="[x]\njunk")
    write(site, metadata=None, name="other-1.dist-info", points="[soundomni.samplers]\nbad = a-b:c\n")
    assert main(["plugins", "list"]) == 0
    out = capsys.readouterr().out
    assert "good-audio 1.2.3" in out and "acme-audio 1.2" in out and "'junk' is not NAME = MODULE:CLASS" in out
    assert main(["plugins", "list", "codec", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(fault["distribution"] for fault in found["faults"]) == ["acme-audio 1.2", "other 1", "other 1"]
    assert main(["plugins", "list", "codec", "--check"]) == 1
    assert main(["spec", "validate", "nano"]) == 0


@pytest.mark.parametrize("name", ["acme_audio-1.2.dist-info", ".dist-info"])
def test_others_who_read_all_entry_points_do_not_meet_broken_ones(site: Path, name: str) -> None:
    write(site, metadata=None, points="[x]\njunk", name=name)
    with pytest.raises((TypeError, AttributeError)):
        importlib.metadata.entry_points(group="torch.backends")
    with only_readable():
        names = {point.name for point in importlib.metadata.entry_points(group="soundomni.codecs")}
        assert {"good", "mdct"} <= names and registry.faults()
    with pytest.raises((TypeError, AttributeError)):
        importlib.metadata.entry_points(group="torch.backends")


def test_torch_is_imported_next_to_a_broken_distribution(site: Path) -> None:
    write(site, points="[x]\njunk")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "soundomni.cli.main", "plugins", "show", "codec", "mdct", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["name"] == "mdct"
    lines = [line for line in done.stderr.splitlines() if "is working" not in line]  # which is said on a slow machine
    assert len(lines) == 1 and lines[0].startswith("acme-audio 1.2: ")


def test_a_package_belongs_to_its_distribution_whatever_others_hold(site: Path) -> None:
    info = write(site, metadata=b"Name: acm\xe9", name="broken-1.dist-info")
    (info / "top_level.txt").write_bytes(b"\xff")
    (write(site, points=None) / "RECORD").write_text("acme_discovery.py,,\nother/__init__.py,,\n")
    assert provider_of("acme_discovery") == provider_of("other") == ("acme-audio", "1.2")
    assert provider_of("no_such_package") == ("", "unknown")
    assert provider_of("yaml")[0] == "PyYAML"


def test_nothing_is_imported(site: Path) -> None:
    write(site)
    assert registry.find("codec", "acme") and "acme_discovery" not in sys.modules
