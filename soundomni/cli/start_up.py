"""What commands do to start sooner."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Do not collect garbage while modules are imported, and never search what is there then for garbage later.

    Modules are not garbage, but Python's collector would search all of them several times, which takes a tenth of the time
    in which a model is ready. `gc.unfreeze` undoes it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
