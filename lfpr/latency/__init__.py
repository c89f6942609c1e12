"""Measured latency as a cost, and mask search under it."""
