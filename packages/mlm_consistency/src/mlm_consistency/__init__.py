"""Is there a joint distribution behind a masked language model?"""

from . import compat, gibbs, hodge, joints
from .tables import CubeTable, PairTable

__all__ = ["CubeTable", "PairTable", "compat", "gibbs", "hodge", "joints"]
