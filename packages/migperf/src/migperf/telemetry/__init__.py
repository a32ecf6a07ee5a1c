"""Telemetry: NVML, GPM, DCGM text and CPU counters, under one set of names."""
