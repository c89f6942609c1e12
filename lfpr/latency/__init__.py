"""Measured latency as a cost, and mask search under it, which `lfpr.search` does once this package is imported."""

from lfpr.latency.cost import LatencyCost, take_turns
from lfpr.latency.search import search_latency

__all__ = ["LatencyCost", "search_latency", "take_turns"]
