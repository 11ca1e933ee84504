"""Starts a program in two processes of one group, as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_in_two_processes(program: Path, *arguments: str, timeout: float = 240) -> None:
    """Run a Python program on two ranks with one thread each, and fail with its errors if one of them does not exit with 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(program), *arguments]
    workers = [
        subprocess.Popen(
            command, env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=timeout)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
