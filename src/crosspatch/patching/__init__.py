"""Exact activation patching: sources, sweeps in both directions, drill, conditional ablation, diagnosis, localize."""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.patching.conditional import Conditional, conditional
    from crosspatch.patching.diagnose import diagnose
    from crosspatch.patching.drill import drill
    from crosspatch.patching.levels import Drill
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

# `Localization` and `Drill` are plain data: reading them from a folder needs no torch.
make_lazy(
    __name__,
    {
        "conditional": ("Conditional", "conditional"),
        "diagnose": ("diagnose",),
        "drill": ("drill",),
        "levels": ("Drill",),
        "localization": ("Localization",),
        "localize": ("localize",),
        "references": ("Mean", "Resample"),
        "sources": ("Function", "GaussianNoise", "Given", "OtherRun", "Source", "Zero"),
        "sweep": ("patch",),
        "tracing": ("causal_trace",),
    },
)
