"""What a run says about its data and its machine before the first step."""

from __future__ import annotations

import os

import torch

from soundomni.core.spec.schema import DataSpec
from soundomni.data.mixture import Mixture
from soundomni.data.rates import describe_rates
from soundomni.data.samples import SampleWriter
from soundomni.data.usage import survey
from soundomni.train.cores import busy_warning, free_cores
from soundomni.train.terminal import tell


def announce(mixture: Mixture, writer: SampleWriter, spec: DataSpec, *, codec_rate: int) -> set[str]:
    """Say on stderr how many clips of how many are used and why others are not, what the codec keeps of them, and if cores are short.

    Returns the groups of clips that were named.

    Args:
        mixture, writer, spec: of the run.
        codec_rate: in Hz.
    """
    told: set[str] = set()
    for usage in survey(mixture, writer, spec):
        told |= usage.examples.keys()
        for line in usage.describe():
            tell(line)
        if len(mixture.indices(usage.name)):
            tell(describe_rates(mixture, usage.name, codec_rate=codec_rate))
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    warning = busy_warning(torch.get_num_threads(), processes=local_processes, free=free_cores())
    if warning is not None:
        tell(f"warning: {warning}")
    return told
