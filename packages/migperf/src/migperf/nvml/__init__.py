"""The driver library: a typed wrapper over pynvml, and a simulated driver."""
