"""Routing by modality."""

from __future__ import annotations

from soundomni.core.interfaces import Router
from soundomni.core.sequence import Role


class ModalityRouter(Router):
    """Separate experts for understanding and generation (Mixture-of-Transformers, Liang et al. 2024; BAGEL, Deng et al.
    2025, section 2.1).

    Text and the features of heard audio run through "und"; latents and codes, clean or noisy, through "gen".
    """

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams: "und" and "gen"."""
        return ("und", "gen")

    def stream_of(self, role: Role) -> int:
        """Return 0 for TEXT and FEATURES, 1 for LATENT and CODES."""
        return 1 if role in (Role.LATENT, Role.CODES) else 0
