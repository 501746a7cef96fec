"""Circuits: the object, from scores to circuits, comparison, files, references, exact evaluation."""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.circuits.acdc import Pruned, acdc, acdc_scores
    from crosspatch.circuits.budget import largest_within
    from crosspatch.circuits.circuit import Circuit
    from crosspatch.circuits.compare import (
        Agreement,
        Roc,
        agreement,
        auroc,
        common_core,
        edit_distance,
        frequency,
        iou,
        roc,
    )
    from crosspatch.circuits.completeness import Completeness, completeness
    from crosspatch.circuits.control import random_weights
    from crosspatch.circuits.evaluate import evaluate
    from crosspatch.circuits.evaluation import CircuitEvaluation
    from crosspatch.circuits.formats.convert import read_circuit, write_circuit
    from crosspatch.circuits.frontier import Frontier, frontier, frontier_of_scores
    from crosspatch.circuits.hypotheses import HypothesisTests, hypothesis_tests
    from crosspatch.circuits.judge import Judge
    from crosspatch.circuits.known import distance_setup, needed_edges, program_setup
    from crosspatch.circuits.learn import Learned, learn_mask
    from crosspatch.circuits.masked import run_masks
    from crosspatch.circuits.mib import cmd, cpr, interpbench_auroc, log_cmd, log_cpr
    from crosspatch.circuits.minimality import Minimality, minimality
    from crosspatch.circuits.neurons import Neurons
    from crosspatch.circuits.pathlist import ScoredPath, enumerate_paths
    from crosspatch.circuits.random import random_circuits, random_like
    from crosspatch.circuits.ranking import consistent
    from crosspatch.circuits.references import Reference, reference
    from crosspatch.circuits.search import Found, Search, find_circuit
    from crosspatch.circuits.select import by_span, from_node_scores, greedy, nested, path_aware, threshold, top_n
    from crosspatch.circuits.specificity import Specificity, specificity
    from crosspatch.circuits.stability import Stability, stability
    from crosspatch.circuits.worst import worst_pairs

__all__ = [
    "Agreement",
    "Circuit",
    "CircuitEvaluation",
    "Completeness",
    "Found",
    "Frontier",
    "HypothesisTests",
    "Judge",
    "Learned",
    "Minimality",
    "Neurons",
    "Pruned",
    "Reference",
    "Roc",
    "ScoredPath",
    "Search",
    "Specificity",
    "Stability",
    "acdc",
    "acdc_scores",
    "agreement",
    "auroc",
    "by_span",
    "cmd",
    "common_core",
    "completeness",
    "consistent",
    "cpr",
    "distance_setup",
    "edit_distance",
    "enumerate_paths",
    "evaluate",
    "find_circuit",
    "frequency",
    "from_node_scores",
    "frontier",
    "frontier_of_scores",
    "greedy",
    "hypothesis_tests",
    "interpbench_auroc",
    "iou",
    "largest_within",
    "learn_mask",
    "log_cmd",
    "log_cpr",
    "minimality",
    "needed_edges",
    "nested",
    "path_aware",
    "program_setup",
    "random_circuits",
    "random_like",
    "random_weights",
    "read_circuit",
    "reference",
    "roc",
    "run_masks",
    "specificity",
    "stability",
    "threshold",
    "top_n",
    "worst_pairs",
    "write_circuit",
]

# Reading, comparing and exporting circuits needs no torch.
make_lazy(
    __name__,
    {
        "budget": ("largest_within",),
        "circuit": ("Circuit",),
        "compare": (
            "Agreement",
            "Roc",
            "agreement",
            "auroc",
            "common_core",
            "edit_distance",
            "frequency",
            "iou",
            "roc",
        ),
        "completeness": ("Completeness", "completeness"),
        "control": ("random_weights",),
        "evaluate": ("evaluate",),
        "evaluation": ("CircuitEvaluation",),
        "formats.convert": ("read_circuit", "write_circuit"),
        "frontier": ("Frontier", "frontier", "frontier_of_scores"),
        "hypotheses": ("HypothesisTests", "hypothesis_tests"),
        "judge": ("Judge",),
        "mib": ("cmd", "cpr", "interpbench_auroc", "log_cmd", "log_cpr"),
        "minimality": ("Minimality", "minimality"),
        "neurons": ("Neurons",),
        "pathlist": ("ScoredPath", "enumerate_paths"),
        "random": ("random_circuits", "random_like"),
        "ranking": ("consistent",),
        "references": ("Reference", "reference"),
        "select": ("by_span", "from_node_scores", "greedy", "nested", "path_aware", "threshold", "top_n"),
        "specificity": ("Specificity", "specificity"),
        "stability": ("Stability", "stability"),
        "worst": ("worst_pairs",),
        "acdc": (
            "Pruned",
            "acdc",
            "acdc_scores",
        ),
        "learn": (
            "Learned",
            "learn_mask",
        ),
        "masked": ("run_masks",),
        "search": (
            "Found",
            "Search",
            "find_circuit",
        ),
        "known": (
            "distance_setup",
            "needed_edges",
            "program_setup",
        ),
    },
)
