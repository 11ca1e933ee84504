"""Conformance of trackers."""

from __future__ import annotations

import math
import struct
import wave
import zlib
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from soundomni.core.interfaces import Tracker
from soundomni.core.spec.schema import ModalitySpec, ModelSpec, Slot, Spec
from soundomni.testing.suite import ConformanceSuite

SPEC = Spec(
    model=ModelSpec(
        backbone=Slot("mot"),
        router=Slot("modality"),
        modalities={
            "latent": ModalitySpec(
                codec=Slot("mdct"), connector=Slot("linear"), objective=Slot("flow-matching"), sampler=Slot("euler"), normalize="channel"
            )
        },
    ),
)

OTHERS = ("spec.yaml", "metrics.jsonl", "checkpoints/latest", "samples/step-00000001/00-rain.wav", "notes.txt", "data/mine.csv")
"""Files of a run directory that no tracker writes, including a user's own."""


class TrackerSuite(ConformanceSuite):
    """Clauses of `soundomni.core.interfaces.Tracker`. Trackers are closed after each clause."""

    kind: ClassVar[str] = "tracker"

    @abstractmethod
    def make(self, *, run_dir: Path, spec: Spec) -> Tracker:
        """Return a new tracker that needs no network; the assembly passes these arguments."""

    def built(self, seed: int = 0) -> Tracker:
        """Return a closed tracker of a run directory that no longer exists."""
        made: list[Tracker] = []
        self._use(lambda tracker, _: made.append(tracker))
        return made[0]

    def test_log(self) -> None:
        """Metrics are accepted at every step: none, one, several, and numbers that are not finite."""

        def use(tracker: Tracker, run_dir: Path) -> None:
            for step, metrics in enumerate(({}, {"loss": 1.5}, {"loss": 1.25, "lr": 1e-4}, {"loss": math.nan, "norm": math.inf})):
                self._accept("log", f"log({step}, {metrics})", partial(tracker.log, step, metrics))

        self._use(use)

    def test_log_files(self) -> None:
        """WAV and PNG files are accepted, also none, and stay unchanged where they are."""

        def use(tracker: Tracker, run_dir: Path) -> None:
            files = [run_dir / "tone.wav", run_dir / "tone.png"]
            _write_wav(files[0])
            _write_png(files[1])
            before = [path.read_bytes() for path in files]
            self._accept("log_files", "log_files(1, [])", lambda: tracker.log_files(1, []))
            self._accept("log_files", "log_files of a WAV and a PNG file", lambda: tracker.log_files(2, files))
            for path, content in zip(files, before, strict=True):
                kept = path.exists() and path.read_bytes() == content
                self.require(kept, "log_files", f"log_files changed or removed {path.name}; expected it to stay in the run directory")

        self._use(use)

    def test_close(self) -> None:
        """A tracker closes, whether or not anything was logged, and even if it never began."""
        for steps in (None, 0, 2):
            with TemporaryDirectory() as folder:
                tracker = self.make(run_dir=Path(folder), spec=SPEC)
                if steps is not None:
                    tracker.begin(0)
                for step in range(steps or 0):
                    tracker.log(step, {"loss": 1.0})
                given = "close before begin" if steps is None else f"close after {steps} steps"
                self._accept("close", given, tracker.close)

    def test_resumes(self) -> None:
        """A second tracker takes over the run directory of the first, when a run is resumed and when it starts over."""
        with TemporaryDirectory() as folder:
            for first in (0, 2, 0):

                def log(first: int = first) -> None:
                    tracker = self.make(run_dir=Path(folder), spec=SPEC)
                    tracker.begin(first)
                    tracker.log(first + 1, {"loss": 1.0})
                    tracker.close()

                self._accept("resumes", f"a tracker from step {first} on in one run directory", log)

    def test_files(self) -> None:
        """The files that it writes into the run directory match its `files`, and no others do: overwriting removes what
        matches."""
        patterns = type(self.built()).files
        with TemporaryDirectory() as folder:
            run_dir = Path(folder)
            for pattern in patterns:
                within = bool(pattern) and not Path(pattern).is_absolute() and ".." not in Path(pattern).parts
                self.require(within, "files", f"files has '{pattern}'; expected a pattern relative to the run directory")
            for name in OTHERS:
                (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
                (run_dir / name).touch()
            matched = {path for pattern in patterns for path in run_dir.glob(pattern)}
            for name in OTHERS:
                self.require(run_dir / name not in matched, "files", f"files matches '{name}', which it does not write")
            tracker = self.make(run_dir=run_dir, spec=SPEC)
            tracker.begin(0)
            tracker.log(1, {"loss": 1.0})
            tracker.close()
            matched = {path for pattern in patterns for path in run_dir.glob(pattern)}
            for path in sorted(run_dir.rglob("*")):
                name = path.relative_to(run_dir).as_posix()
                known = path.is_dir() or path in matched or name in OTHERS
                self.require(known, "files", f"'{name}' was written, but files is {patterns}; expected a pattern that matches it")

    def _accept(self, clause: str, given: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            message = f"{given} raised {type(error).__name__}: {error}; expected it to be accepted"
            raise AssertionError(f"TrackerSuite.{clause}: {message}") from error

    def _use(self, use: Callable[[Tracker, Path], None]) -> None:
        with TemporaryDirectory() as folder:
            tracker = self.make(run_dir=Path(folder), spec=SPEC)
            try:
                tracker.begin(0)
                use(tracker, Path(folder))
            finally:
                tracker.close()


def _write_wav(path: Path) -> None:
    """Write a tenth of a second of a tone, 16 bits, 8 kHz."""
    samples = [round(8000 * math.sin(2 * math.pi * 440 * n / 8000)) for n in range(800)]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))


def _write_png(path: Path) -> None:
    """Write a gray square of 4 by 4 pixels, 8-bit RGB (PNG specification, section 5)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header, rows = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0), (b"\x00" + b"\x80" * 12) * 4
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
