"""Sparse feature circuits: effects of features and error terms, edges between them, and what a set of them explains."""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.features.basis import Basis, Features, Neurons, bases_of
    from crosspatch.features.curve import Curve, load_curves, save_curves
    from crosspatch.features.curves import size_curves
    from crosspatch.features.edge_evaluate import all_edges, edge_passes, evaluate_edges
    from crosspatch.features.edge_scores import FeatureEdges
    from crosspatch.features.edge_sets import EdgeEvaluation, EdgeSet
    from crosspatch.features.edges import feature_edges
    from crosspatch.features.effects import feature_effects, templatic
    from crosspatch.features.evaluate import evaluate_nodes
    from crosspatch.features.evaluation import FeatureEvaluation
    from crosspatch.features.exact import exact_effects
    from crosspatch.features.found import FeatureEffects
    from crosspatch.features.nodes import Node, NodeSet
    from crosspatch.features.replaced import Replacement, replacement
    from crosspatch.features.saved import load_circuit, load_effects, save_circuit, save_effects
    from crosspatch.features.search import FeatureSearch, FoundFeatures, find_features

__all__ = [
    "Basis",
    "Curve",
    "EdgeEvaluation",
    "EdgeSet",
    "FeatureEdges",
    "FeatureEffects",
    "FeatureEvaluation",
    "FeatureSearch",
    "Features",
    "FoundFeatures",
    "Neurons",
    "Node",
    "NodeSet",
    "Replacement",
    "all_edges",
    "bases_of",
    "edge_passes",
    "evaluate_edges",
    "evaluate_nodes",
    "exact_effects",
    "feature_edges",
    "feature_effects",
    "find_features",
    "load_circuit",
    "load_curves",
    "load_effects",
    "replacement",
    "save_circuit",
    "save_curves",
    "save_effects",
    "size_curves",
    "templatic",
]

# What was found is plain data: looking at it needs no torch.
make_lazy(
    __name__,
    {
        "basis": ("Basis", "Features", "Neurons", "bases_of"),
        "curve": ("Curve", "load_curves", "save_curves"),
        "curves": ("size_curves",),
        "edge_evaluate": ("all_edges", "edge_passes", "evaluate_edges"),
        "edge_scores": ("FeatureEdges",),
        "edge_sets": ("EdgeEvaluation", "EdgeSet"),
        "edges": ("feature_edges",),
        "effects": ("feature_effects", "templatic"),
        "evaluate": ("evaluate_nodes",),
        "evaluation": ("FeatureEvaluation",),
        "exact": ("exact_effects",),
        "found": ("FeatureEffects",),
        "nodes": ("Node", "NodeSet"),
        "replaced": ("Replacement", "replacement"),
        "saved": ("load_circuit", "load_effects", "save_circuit", "save_effects"),
        "search": ("FeatureSearch", "FoundFeatures", "find_features"),
    },
)
