"""Small real shards and tables for the tests of datasets: audio as bytes, tar archives and Parquet files."""

import contextlib
import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

RATE = 8000
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def clip(number=0, suffix="wav", *, samples=None, channels=1):
    """Returns an audio file of this type as bytes; a clip of another number has other samples."""
    container, subtype = FORMATS[suffix]
    count = 800 + 8 * (number % 50) if samples is None else samples
    noise = 0.05 * np.random.default_rng(number).standard_normal((count, channels))
    out = io.BytesIO()
    soundfile.write(out, noise.astype(np.float32), RATE, format=container, subtype=subtype)
    return out.getvalue()


def header(name, *, size=0, kind=tarfile.REGTYPE, link="", form=tarfile.GNU_FORMAT):
    """Returns the header of a member."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(form)


def member(name, data, **settings):
    """Returns a regular file of an archive: header and padded content."""
    return header(name, size=len(data), **settings) + data + bytes(-len(data) % 512)


def write_tar(path, members, *, end=bytes(1024)):
    """Writes an archive of (name, bytes), or of bytes that are whole members already."""
    parts = [one if isinstance(one, bytes) else member(*one) for one in members]
    path.write_bytes(b"".join(parts) + end)
    return path


def write_parquet(path, files, *, group=4, columns=None, names=None, **settings):
    """Writes a shard with a column of audio, from bytes or None, and others."""
    names = names or [f"{i}.wav" for i in range(len(files))]
    audio = pa.array(
        [{"bytes": data, "path": name} for data, name in zip(files, names, strict=True)],
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )
    texts = {"text": [f"sound {i}" for i in range(len(files))]} if columns is None else columns
    pq.write_table(pa.table({"audio": audio} | texts), path, row_group_size=group, **settings)
    return path


def settle(path):
    """Makes a file look as if it had not changed lately, so that what is known about it may be kept."""
    os.utime(path, (1_500_000_000, 1_500_000_000))
    return path


def items_of(dataset):
    """Returns the items by key."""
    return {dataset.item(i).key: dataset.item(i) for i in range(len(dataset))}


def reasons_of(dataset):
    """Returns the reasons of what is left out, by key."""
    return {skip.key: skip.reason for skip in dataset.skipped}


@contextlib.contextmanager
def pyarrow_memory():
    """Gives a pool that counts what pyarrow takes meanwhile, without what an allocator keeps."""
    pool, before = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)
