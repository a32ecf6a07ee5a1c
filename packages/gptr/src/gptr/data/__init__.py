"""Data: readers, writers, transforms, sampling, doctor."""
