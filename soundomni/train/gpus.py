"""The GPU of each process: that with its number, or the only one that a launcher shows it."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

import torch

from soundomni.core.errors import SpecError

_SHOWN = "CUDA_VISIBLE_DEVICES"
"""torch's variable: the GPUs that a process may use. Launchers such as srun set it for each process."""


def own_gpu(local_rank: int, environment: Mapping[str, str]) -> torch.device:
    """Return the device of a process, and make it the current one; the CPU if there is no GPU.

    A launcher may show each process only its own GPU, which then is number 0 for all of them.

    Args:
        local_rank: number of the process among those of its machine.
        environment: variables of the process.

    Raises:
        SpecError: there are more processes than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = 0 if count == 1 and environment.get(_SHOWN, "").strip() else local_rank
    if index >= count:
        raise SpecError(f"LOCAL_RANK is {local_rank}, but this machine has {count} GPUs. Start one process per GPU")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def name_of(gpu: torch.device) -> str:
    """Return what no other GPU is called: its machine and its own number."""
    return f"{socket.gethostname()}, {torch.cuda.get_device_properties(gpu).uuid}"


def check_gpus(names: Sequence[str]) -> None:
    """Raise SpecError if two processes have the same GPU, with which NCCL cannot work; `names` are those of the ranks."""
    for rank, name in enumerate(names):
        if name in names[:rank]:
            raise SpecError(
                f"processes {names.index(name)} and {rank} both use the GPU {name}. Start one process per GPU, "
                f"or let the launcher set {_SHOWN} to another GPU for each process"
            )
