"""The processes of a run by torchrun's variables, checked before this process waits for another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from soundomni.core.errors import SpecError, shown

LAUNCHERS = {
    "SLURM_NTASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "FLUX_JOB_SIZE": "flux",
    "JSM_NAMESPACE_SIZE": "jsrun",
}
"""Variable in which a launcher counts its processes → the launcher. None of them sets torchrun's variables."""

_CURE = "Start the processes with torchrun, which sets it, or unset RANK, LOCAL_RANK and WORLD_SIZE to use one process"
_HIGHEST_PORT = 65535


@dataclass(frozen=True)
class Launch:
    """This process among those that torchrun started.

    Args:
        rank, size: number of this process, and number of processes.
    """

    rank: int
    size: int


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """Return what torchrun's variables say; None if they do not describe a group of processes.

    Raises:
        SpecError: one is missing, is not a number or does not fit the others; or another launcher started several
            processes, and each would train the same run. It has a note, so that each process reports its own mistake.
    """
    try:
        return _read(environment)
    except SpecError as error:
        error.add_note(f"RANK {environment.get('RANK', 'is not set')}")
        raise


def local_rank(environment: Mapping[str, str]) -> int:
    """Return the number of this process among those of its machine, 0 if the environment does not say.

    Raise SpecError on failure.
    """
    return _number(environment, "LOCAL_RANK", 0, least=0)


def _read(environment: Mapping[str, str]) -> Launch | None:
    size = _number(environment, "WORLD_SIZE", 1, least=1)
    local = local_rank(environment)
    if "RANK" not in environment:
        if size > 1:
            raise SpecError(f"WORLD_SIZE is {size}, but RANK is not set. {_CURE}")
        _refuse_other_launchers(environment)
        return None
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise SpecError(f"RANK is set, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not. {_CURE}")
    rank = _number(environment, "RANK", 0, least=0)
    if rank >= size:
        raise SpecError(f"RANK is {rank}; expected 0 to {size - 1}, because WORLD_SIZE is {size}. {_CURE}")
    if local >= size:
        raise SpecError(f"LOCAL_RANK is {local}; expected 0 to {size - 1}, because WORLD_SIZE is {size}. {_CURE}")
    port = _number(environment, "MASTER_PORT", 0, least=1)
    if port > _HIGHEST_PORT:
        raise SpecError(f"MASTER_PORT is {port}; expected 1 to {_HIGHEST_PORT}. {_CURE}")
    return Launch(rank, size)


def _number(environment: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    text = environment.get(name)
    if text is None:
        return default
    digits = text.strip().removeprefix("-")
    value = int(text) if digits.isascii() and digits.isdigit() and len(digits) < 10 else least - 1
    if value < least:
        raise SpecError(f"{name} is {shown(text)}; expected a whole number of at least {least}. {_CURE}")
    return value


def _refuse_other_launchers(environment: Mapping[str, str]) -> None:
    for name, launcher in LAUNCHERS.items():
        text = environment.get(name, "")
        if text.isascii() and text.isdigit() and int(text) > 1:
            raise SpecError(
                f"{name} is {text}, but RANK is not set, so each of these processes would train the same run. Let "
                f"{launcher} start "
                f"torchrun once per machine, which starts the processes, or unset {name} to train in one process"
            )
