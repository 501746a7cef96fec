"""Exact activation patching: sources, sweeps in both directions, drill, conditional ablation, diagnosis, localize."""

from crosspatch.patching.conditional import Conditional, conditional
from crosspatch.patching.diagnose import diagnose
from crosspatch.patching.drill import Drill, drill
from crosspatch.patching.localization import Localization
from crosspatch.patching.localize import localize
from crosspatch.patching.references import Mean, Resample
from crosspatch.patching.sources import Function, GaussianNoise, Given, OtherRun, Source, Zero
from crosspatch.patching.sweep import patch
from crosspatch.patching.tracing import causal_trace

__all__ = [
    "Conditional",
    "Drill",
    "Function",
    "GaussianNoise",
    "Given",
    "Localization",
    "Mean",
    "OtherRun",
    "Resample",
    "Source",
    "Zero",
    "causal_trace",
    "conditional",
    "diagnose",
    "drill",
    "localize",
    "patch",
]
