"""The sources that the page on datasets shows for each layout."""

import re
from pathlib import Path

import pytest
import yaml
from shard_files import clip, write_parquet, write_tar

from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot

PAGE = (Path(__file__).parents[2] / "docs/plugins/dataset.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Data you have") : PAGE.index("## Built in")]
SOURCES = {row[0]: yaml.safe_load(row[1]) for row in re.findall(r"^\| (.+?) \| `(\{class_path.+?\}\})`", SECTION, re.MULTILINE)}
CLIPS = ("a.wav", "abc_30.wav", "abc_30.flac")
TABLES = {
    "metadata.csv": "file_name,caption\na.wav,x\n",
    "train.json": '{"audio_filepath": "a.wav", "duration": 0.1, "text": "x"}\n',
    "train.csv": "audiocap_id,youtube_id,start_time,caption\n1,abc,30,A dog\n",
    "clotho_captions_development.csv": "file_name,caption_1,caption_2\na.wav,x,y\n",
    "train.tsv": "/data/LibriSpeech\na.wav\t800\n",
    "data.csv": "clip,begin,title,tags\na.wav,0.01,x,y\n",
}


def test_there_is_a_row_for_each_layout():
    assert len(SOURCES) == len(re.findall(r"class_path", SECTION)) >= 12


@pytest.mark.parametrize("layout", SOURCES)
def test_the_source_of_a_layout_reads_it(tmp_path, monkeypatch, layout):
    source = SOURCES[layout]
    if source["class_path"] == "encoded":
        assert set(source["init_args"]) <= {
            argument.name for argument in registry.arguments("dataset", registry.load("dataset", "encoded"))
        }
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for folder in (".", "my-sounds", "clips", "development", "corpus", "absolute"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in CLIPS:
            (tmp_path / folder / name).write_bytes(clip(samples=800, suffix=name.rpartition(".")[2]))
        for name, text in TABLES.items():
            (tmp_path / folder / name).write_text(text)
    (tmp_path / "my-sounds" / "a.txt").write_text("x")
    for name, write in (("my-set/data/train-00000-of-00001.parquet", write_parquet), ("my-shards/train-000000.tar", write_tar)):
        (tmp_path / name).parent.mkdir(parents=True)
        write(tmp_path / name, [clip()] if write is write_parquet else [("a.wav", clip()), ("a.txt", b"x")])
    arguments = source["init_args"]
    if str(arguments.get("root", "")).startswith("/"):
        arguments = arguments | {"root": str(tmp_path / "absolute")}
    data = registry.build("dataset", Slot(source["class_path"], arguments))
    assert len(data) == 1 and data.load(0)[0].shape[1] == data.item(0).num_samples
