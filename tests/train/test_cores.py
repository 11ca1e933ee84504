"""Whether cores are free, from quotas and load, and what is said if they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from soundomni.train.cores import busy_warning, free_cores, quota


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, float("inf")),
        ({"cpu.max": "nonsense"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_quotas_of_containers(tmp_path: Path, files: dict[str, str], cores: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota(tmp_path) == cores
    assert 0 <= free_cores(root=tmp_path) <= min(cores, os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("threads", "processes", "free", "expected"),
    [
        (2, 1, 2.0, None),
        (2, 1, 1.6, None),
        (1, 1, 0.0, None),
        (2, 1, 0.9, "uses 2 threads, but only about 0.9 of "),
        (8, 1, 3.2, "Set train.threads to 3"),
        (4, 4, 8.0, "uses 4 processes with 4 threads each, but only about 8.0 of "),
        (4, 4, 8.0, "Set train.threads to 2"),
    ],
)
def test_too_many_threads_are_one_line_with_a_cure(threads: int, processes: int, free: float, expected: str | None) -> None:
    warning = busy_warning(threads, processes=processes, free=free)
    assert warning is None if expected is None else warning is not None and expected in warning and "\n" not in warning


def test_a_policy_that_is_set_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert "OMP_WAIT_POLICY=PASSIVE" in (busy_warning(4, processes=1, free=1.0) or "")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert (busy_warning(4, processes=1, free=1.0) or "").endswith("Set train.threads to 1")
