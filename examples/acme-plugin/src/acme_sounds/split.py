"""Two expert streams: one for input that is heard or read, one for what is generated."""

from __future__ import annotations

from soundomni.core.interfaces import Router
from soundomni.core.sequence import Role


class SplitRouter(Router):
    """Text and features run through "listen", latents and codes through "speak"."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams: "listen" and "speak"."""
        return ("listen", "speak")

    def stream_of(self, role: Role) -> int:
        """Return 0 for TEXT and FEATURES, 1 for LATENT and CODES."""
        return 0 if role in (Role.TEXT, Role.FEATURES) else 1
