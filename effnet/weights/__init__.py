"""Weights of other libraries in, and out again."""

from effnet.weights.files import WeightsSource, fetch_weights
from effnet.weights.transfer import export_weights, load_weights

__all__ = ["WeightsSource", "export_weights", "fetch_weights", "load_weights"]
