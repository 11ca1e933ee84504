"""No routing: one network for every token."""

from __future__ import annotations

from soundomni.core.interfaces import Router
from soundomni.core.sequence import Role


class DenseRouter(Router):
    """Sends every token through one stream, "all": a plain transformer."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams: only "all"."""
        return ("all",)

    def stream_of(self, role: Role) -> int:
        """Return 0 for every role."""
        return 0
