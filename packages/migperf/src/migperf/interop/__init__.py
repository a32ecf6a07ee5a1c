"""File formats and names of NVIDIA's own tools."""
