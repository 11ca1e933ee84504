"""One step in a process of its own: `python -m benchmarks.gpu.child MODULE:FUNCTION DEVICE SIZES`, with the sizes as JSON.

Numbers are lines of JSON on stdout, and so is the reason if the step fails; see findings.py.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Sequence

from benchmarks.gpu.outcomes import Failed, NoGPU
from benchmarks.gpu.plan import NO_GPU


def main(arguments: Sequence[str]) -> int:
    """Run the step. Return 0 if it passed, 1 if it failed, and NO_GPU if there is no GPU for it."""
    target, device, sizes = arguments
    module, _, name = target.partition(":")
    try:
        getattr(importlib.import_module(module), name)(device, **json.loads(sizes))
    except NoGPU:
        return NO_GPU
    except Failed as failure:
        print(json.dumps({"reason": str(failure)}))
        return 1
    except Exception as found:  # whatever a step runs into is its result
        traceback.print_exc()
        print(json.dumps({"reason": " ".join(f"{type(found).__name__}: {found}".split())[:500]}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
