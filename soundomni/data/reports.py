"""Names what is left out, once each, without flooding the log."""

from __future__ import annotations

import logging

logger = logging.getLogger("soundomni.data")


class Reports:
    """Warnings about single items, each key once and at most `limit` keys; all are counted.

    Args:
        what: what happened to them, such as "refused".
        limit: keys to name before only counting goes on.
    """

    def __init__(self, what: str, *, limit: int = 20) -> None:
        self.count = 0
        self.examples: list[str] = []
        self._what = what
        self._limit = limit
        self._keys: set[str] = set()

    def add(self, key: str, reason: str) -> None:
        """Counts one, and names it unless it has been named."""
        self.count += 1
        if key in self._keys or len(self._keys) > self._limit:
            return
        self._keys.add(key)
        if len(self._keys) > self._limit:
            logger.warning("more items were %s; from here on they are only counted", self._what)
            return
        self.examples.append(f"{key}: {reason}")
        logger.warning("%s '%s': %s", self._what, key, reason)
