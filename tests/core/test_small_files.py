"""Small files of strangers: whatever lies at their path, they are read whole within bounds or refused at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from soundomni.core.errors import CheckpointError, SpecError, did_you_mean, shown
from soundomni.core.files.small_files import open_regular, parse_json, read_json, read_piped_text, read_text
from soundomni.core.spec import yaml_text


def bound_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 << 30)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: os.mkfifo(path), "it is a pipe; expected a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device; expected a regular file"),
        (lambda path: path.mkdir(), "it is a directory; expected a regular file"),
        (bound_socket, "No such device"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (sparse, "it has more than 16,777,216 bytes, too many"),
    ],
    ids=["pipe", "device", "directory", "socket", "loop", "dangling", "sparse"],
)
def test_what_is_not_a_small_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], object], told: str) -> None:
    path = tmp_path / "config.json"
    make(path)
    for read in (read_text, read_json, read_piped_text):
        with pytest.raises(OSError, match=told):
            read(path)
    if make is not sparse:
        with pytest.raises(OSError, match=told):
            open_regular(path)


def test_links_are_followed_and_limits_are_exact(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text('{"a": "é"}', encoding="utf-8")
    (tmp_path / "config.json").symlink_to(tmp_path / "blob")
    assert read_json(tmp_path / "config.json") == {"a": "é"}
    assert read_text(tmp_path / "config.json", most_bytes=11) == '{"a": "é"}'
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_text(tmp_path / "config.json", most_bytes=10)
    (tmp_path / "blob").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(tmp_path / "config.json")


def test_a_pipe_of_the_shell_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"model: null")
    os.close(writing)
    assert read_piped_text(f"/dev/fd/{reading}") == "model: null"
    os.close(reading)
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_piped_text("/dev/zero", most_bytes=100)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 990 + "]" * 5])
def test_json_that_is_deep_or_cut_short_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|Expecting"):
        parse_json(text)


@pytest.mark.parametrize("text", ["[" + "[]," * 99 + "0]", '{"a":' + "{}," * 99, ",".join("1" * 102)])
def test_values_of_json_are_counted_before_they_are_made(text: str) -> None:
    with pytest.raises(ValueError, match="it holds more than 100 values"):
        parse_json(text, most_values=100)


def test_errors_are_one_line_of_bounded_length_that_no_terminal_obeys() -> None:
    line = str(CheckpointError("a\n\tb \x1b[2J\u202e\x00 c\u2028d" + "x" * 10_000))
    assert line.startswith(r"a b \x1b[2J\u202e\x00 c d") and len(line) < 4100
    assert str(CheckpointError("two  spaces, ä and 音")) == "two  spaces, ä and 音"
    assert shown("x" * 1000).endswith("xxx…") and shown(10**5000).startswith("0x31e2")
    assert did_you_mean("x" * 10_000, ["x" * 9999]) == ""


@pytest.mark.parametrize("digits", [4301, 100_000])
def test_a_number_of_too_many_digits_is_explained_in_the_words_of_a_file(digits: int) -> None:
    number = "9" * digits
    with pytest.raises(ValueError, match="^it has a whole number of too many digits$"):
        parse_json(f'{{"a": [{number}]}}')
    with pytest.raises(SpecError, match="^mine.yaml: not valid YAML: it has a whole number of too many digits$"):
        yaml_text.parse(f"a: {number}", "mine.yaml")
