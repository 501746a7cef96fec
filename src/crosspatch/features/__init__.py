"""Sparse feature circuits: effects of features and error terms, edges between them, and what a set of them explains."""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.features.basis import Basis, Features, Neurons, bases_of
    from crosspatch.features.edge_scores import FeatureEdges
    from crosspatch.features.edges import feature_edges
    from crosspatch.features.effects import feature_effects, templatic
    from crosspatch.features.evaluate import evaluate_nodes
    from crosspatch.features.evaluation import FeatureEvaluation
    from crosspatch.features.exact import exact_effects
    from crosspatch.features.found import FeatureEffects
    from crosspatch.features.nodes import Node, NodeSet
    from crosspatch.features.replaced import Replacement, replacement
    from crosspatch.features.saved import load_circuit, load_effects, save_circuit, save_effects

__all__ = [
    "Basis",
    "FeatureEdges",
    "FeatureEffects",
    "FeatureEvaluation",
    "Features",
    "Neurons",
    "Node",
    "NodeSet",
    "Replacement",
    "bases_of",
    "evaluate_nodes",
    "exact_effects",
    "feature_edges",
    "feature_effects",
    "load_circuit",
    "load_effects",
    "replacement",
    "save_circuit",
    "save_effects",
    "templatic",
]

# What was found is plain data: looking at it needs no torch.
make_lazy(
    __name__,
    {
        "basis": ("Basis", "Features", "Neurons", "bases_of"),
        "edge_scores": ("FeatureEdges",),
        "edges": ("feature_edges",),
        "effects": ("feature_effects", "templatic"),
        "evaluate": ("evaluate_nodes",),
        "evaluation": ("FeatureEvaluation",),
        "exact": ("exact_effects",),
        "found": ("FeatureEffects",),
        "nodes": ("Node", "NodeSet"),
        "replaced": ("Replacement", "replacement"),
        "saved": ("load_circuit", "load_effects", "save_circuit", "save_effects"),
    },
)
