"""Path patching: a claim is a set of paths; test it exactly, score it, see where it fails, refine it."""

from crosspatch.paths.attribute import Attribution, attribute
from crosspatch.paths.candidates import Step, steps
from crosspatch.paths.decohere import Decohering, decohere
from crosspatch.paths.dissimilarity import DISSIMILARITIES, Dissimilarity
from crosspatch.paths.evaluate import PathReadout, evaluate, make_plan
from crosspatch.paths.files import Hypotheses, parse_hypotheses, read_hypotheses
from crosspatch.paths.in_words import explain
from crosspatch.paths.inspect import (
    canonical,
    contains,
    count,
    equal,
    has_path,
    listed,
    require_some,
)
from crosspatch.paths.mediate import Mediation, mediation
from crosspatch.paths.pairs import Pairs, fixed_reference, task_pairs, text_pairs
from crosspatch.paths.pathset import (
    Decohered,
    PathSet,
    avoiding,
    everything,
    from_edges,
    from_json,
    intersection,
    nothing,
    paths,
    union,
    via,
)
from crosspatch.paths.refine import Refinement, refine, sweep_steps
from crosspatch.paths.saved import load, save
from crosspatch.paths.scores import PathTest, test_paths
from crosspatch.paths.sender import SenderEffects, path_patch, sender_paths

__all__ = [
    "DISSIMILARITIES",
    "Attribution",
    "Decohered",
    "Decohering",
    "Dissimilarity",
    "Hypotheses",
    "Mediation",
    "Pairs",
    "PathReadout",
    "PathSet",
    "PathTest",
    "Refinement",
    "SenderEffects",
    "Step",
    "attribute",
    "avoiding",
    "canonical",
    "contains",
    "count",
    "decohere",
    "equal",
    "evaluate",
    "everything",
    "explain",
    "fixed_reference",
    "from_edges",
    "from_json",
    "has_path",
    "intersection",
    "listed",
    "load",
    "make_plan",
    "mediation",
    "nothing",
    "parse_hypotheses",
    "path_patch",
    "paths",
    "read_hypotheses",
    "refine",
    "require_some",
    "save",
    "sender_paths",
    "steps",
    "sweep_steps",
    "task_pairs",
    "test_paths",
    "text_pairs",
    "union",
    "via",
]
