"""Models of other libraries, run with the fused operators."""

from effnet.fusion.report import FusedPattern, FusionReport, LeftModule
from effnet.fusion.rewrite import fuse, unfuse

__all__ = ["FusedPattern", "FusionReport", "LeftModule", "fuse", "unfuse"]
