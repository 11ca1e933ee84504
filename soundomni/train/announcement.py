"""What a run reports about its data and its machine before the first step."""

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
    """Report on stderr which clips are used, how the codec changes their rates, and whether processor cores are short.

    Return the groups of left-out clips that were named.

    Args:
        mixture, writer, spec: those of the run.
        codec_rate: sample rate of the codec, in Hz.
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
