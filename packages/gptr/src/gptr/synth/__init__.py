"""Generator of annotated diagrams."""

from gptr.synth.generate import FAMILIES, generate, generate_splits

__all__ = ["FAMILIES", "generate", "generate_splits"]
