"""Partition backends under one contract: MIG, MPS, time-slicing, and CPU cores."""
