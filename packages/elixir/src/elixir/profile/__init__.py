"""What a model does and what a machine can do."""

from elixir.profile.hardware import Hardware
from elixir.profile.trace import ModelProfile, ParameterInfo, profile

__all__ = ["Hardware", "ModelProfile", "ParameterInfo", "profile"]
