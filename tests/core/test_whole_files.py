"""Files are written whole or not at all, and what cannot be read is named in one line."""

import errno
import resource
import signal

import pytest
import torch
from safetensors.torch import save_file

from soundomni.core.errors import CheckpointError, message_of
from soundomni.core.files.json_objects import read_object
from soundomni.core.files.paths import slug
from soundomni.core.files.safe_tensors import open_tensors, readable
from soundomni.core.files.whole_files import write_whole
from soundomni.core.representation import draw_noise, length_mask


@pytest.mark.parametrize("settings", [{}, {"part": ".a.part"}, {"durable": True}])
@pytest.mark.parametrize(
    ("content", "expected"), [("für\n", "für\n".encode()), (b"\0\r\n", b"\0\r\n"), (memoryview(b"ab"), b"ab"), ("\udcff", b"\\udcff")]
)
def test_a_file_is_written_in_place_of_another(tmp_path, content, expected, settings):
    path = tmp_path / "a"
    path.write_text("before, and longer")
    write_whole(path, content, **settings)
    assert path.read_bytes() == expected and [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("part", [None, "a.part"])
def test_what_cannot_be_written_leaves_everything_as_it_was(tmp_path, part):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inside").write_text("mine")
    with pytest.raises(OSError):
        write_whole(tmp_path / "a", "x", part=part)
    with pytest.raises(OSError):
        write_whole(tmp_path / "absent" / "a", "x", part=part)
    with pytest.raises(TypeError):
        write_whole(tmp_path / "b", 3, part=part)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "inside").read_text() == "mine"


@pytest.mark.parametrize("settings", [{}, {"part": ".a.part"}, {"durable": True}])
def test_a_file_without_room_is_named_and_leaves_nothing(tmp_path, settings):
    (tmp_path / "a").write_text("before")
    bounds, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, bounds[1]))
    try:
        with pytest.raises(OSError) as raised:
            write_whole(tmp_path / "a", b"x" * (1 << 16), **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.errno == errno.EFBIG and str(tmp_path / "a") in str(raised.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "before"


def test_a_link_in_place_of_the_part_or_the_file_is_replaced_and_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_text("mine")
    for name in ("a", ".a.part"):
        (tmp_path / name).symlink_to(other)
    write_whole(tmp_path / "a", "x", part=".a.part")
    assert other.read_text() == "mine" and (tmp_path / "a").read_text() == "x" and not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "cannot be read as JSON: "),
        ("[1, 2]", r"holds \[1, 2\]; expected a JSON object$"),
        ("3", "holds 3; expected a JSON object$"),
        ("null", "holds None; expected a JSON object$"),
        ('{"a": ' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_a_json_object_is_named_in_one_line(tmp_path, content, words):
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_object(file)
    assert str(caught.value).startswith(f"'{file}' ") and "\n" not in str(caught.value)


def test_a_json_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1]}')
    assert read_object(tmp_path / "a.json") == {"a": [1]}


def test_safetensors_that_cannot_be_read_are_named_in_one_line(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3)}, file)
    with readable(file), open_tensors(file) as opened:
        assert opened.get_tensor("a").tolist() == [1, 1, 1]
    whole = file.read_bytes()
    for content, words in ((whole[:-1], "it is damaged or incomplete: "), (b"\xff" * 20, "it is damaged or incomplete: ")):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=words) as caught, readable(file):
            open_tensors(file)
        assert str(caught.value).startswith(f"'{file}' cannot be read as safetensors") and "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors: No such file or directory$"), readable(file):
        open_tensors(tmp_path / "absent")


def test_the_message_of_an_error_is_one_line():
    assert message_of(ValueError("a\n\t b ")) == "a b"
    assert message_of(KeyError()) == "KeyError" and message_of(OSError(" \n")) == "OSError"


def test_a_slug_is_part_of_a_file_name():
    assert slug("Two clicks: A4!") == "two-clicks-a4"
    assert slug("…", default="empty") == "empty" and slug("a" * 39 + " b", longest=40) == "a" * 39


def test_a_mask_tells_what_lies_within_each_length():
    assert length_mask(torch.tensor([0, 2, 5]), 3).tolist() == [[False] * 3, [True, True, False], [True] * 3]
    assert length_mask(torch.tensor([1], device="meta"), 2).device.type == "meta"


def test_noise_of_a_clip_does_not_depend_on_its_padding():
    short, long = torch.zeros(2, 4), torch.zeros(2, 9, dtype=torch.float64)
    for into in (short, long):
        draw_noise(into, 3, torch.Generator().manual_seed(5))
    assert torch.equal(short[:, :3], long[:, :3].float()) and short[:, :3].all()
    assert not short[:, 3:].any() and not long[:, 3:].any()
