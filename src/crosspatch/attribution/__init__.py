"""Attribution: how much every edge and node matters, fast by gradients and exactly by patching."""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.attribution.ablation import Ablation, Constants, Mean, Paired, Zero, mean_of, resolve_ablation
    from crosspatch.attribution.attribute import attribute
    from crosspatch.attribution.exact import exact_edges
    from crosspatch.attribution.exact_nodes import node_effects
    from crosspatch.attribution.knockout import Knockout, knockout
    from crosspatch.attribution.methods import EDGE_METHODS, NODE_METHODS
    from crosspatch.attribution.missed import MissedBound, missed_bound
    from crosspatch.attribution.optimal import optimal_constants
    from crosspatch.attribution.scores import Scores, load_scores
    from crosspatch.attribution.setup import Setup, setup_of
    from crosspatch.attribution.verify import Verification, verify

__all__ = [
    "EDGE_METHODS",
    "NODE_METHODS",
    "Ablation",
    "Constants",
    "Knockout",
    "Mean",
    "MissedBound",
    "Paired",
    "Scores",
    "Setup",
    "Verification",
    "Zero",
    "attribute",
    "exact_edges",
    "knockout",
    "load_scores",
    "mean_of",
    "missed_bound",
    "node_effects",
    "optimal_constants",
    "resolve_ablation",
    "setup_of",
    "verify",
]

# Scores are plain data: reading them from a folder needs no torch.
make_lazy(
    __name__,
    {
        "ablation": ("Ablation", "Constants", "Mean", "Paired", "Zero", "mean_of", "resolve_ablation"),
        "attribute": ("attribute",),
        "exact": ("exact_edges",),
        "exact_nodes": ("node_effects",),
        "knockout": ("Knockout", "knockout"),
        "methods": ("EDGE_METHODS", "NODE_METHODS"),
        "missed": ("MissedBound", "missed_bound"),
        "optimal": ("optimal_constants",),
        "scores": ("Scores", "load_scores"),
        "setup": ("Setup", "setup_of"),
        "verify": ("Verification", "verify"),
    },
)
