"""Step 0: what is installed, and whether the GPU multiplies as fast as it should."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.findings import Findings, Number, prepare, timed


def environment(kind: str, *, size: int) -> dict[str, Number]:
    """Print versions and what compiling kernels needs, then multiply matrices of `size` rows in bf16."""
    found = Findings()
    for package in ("torch", "triton", "transformers", "bitsandbytes"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    found["python"] = platform.python_version()
    found["CPU threads"] = torch.get_num_threads()
    found["CUDA"], found["cuDNN"] = str(torch.version.cuda), str(torch.backends.cudnn.version())
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang")), "missing")
    header = (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
    found["C compiler"], found["Python.h"] = compiler, header
    kernels: Any = torch._C
    found["order of SDPA kernels"] = [kernels._SDPBackend(index).name for index in kernels._get_sdp_priority_order()]
    device = prepare(kind)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found["GPU"], found["free GiB"], found["total GiB"] = torch.cuda.get_device_name(device), free / 2**30, total / 2**30
        found.require(compiler != "missing" and header, "Triton compiles kernels with a C compiler and Python.h, and one is missing")
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    speed = 2 * size**3 / timed(device, lambda: a @ b, rounds=5, warm_up=3) / 1e12
    if device.type == "cuda":
        found.above("bf16 TFLOP/s", speed, 500.0)
    else:
        found["bf16 TFLOP/s"] = speed
    return found.numbers()
