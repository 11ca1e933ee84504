"""Attention over packed batches: one rule of who sees whom, several exact executors, and a planner that picks one per
batch."""

from soundomni.core.attention.cached import CachedPlan, plan_cached
from soundomni.core.attention.planner import EXECUTORS, plan_attention
from soundomni.core.attention.rule import dense_mask
from soundomni.core.attention.uncompiled import exempt_executors

__all__ = ["EXECUTORS", "CachedPlan", "dense_mask", "exempt_executors", "plan_attention", "plan_cached"]
