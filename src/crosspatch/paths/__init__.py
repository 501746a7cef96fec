"""Path patching: a claim is a set of paths; test it exactly, score it, see where it fails, refine it."""

from crosspatch.paths.attribute import Attribution, attribute
from crosspatch.paths.dissimilarity import DISSIMILARITIES, Dissimilarity
from crosspatch.paths.evaluate import PathReadout, evaluate, make_plan
from crosspatch.paths.inspect import (
    canonical,
    contains,
    count,
    equal,
    explain,
    has_path,
    listed,
    require_some,
)
from crosspatch.paths.pairs import Pairs, fixed_reference, task_pairs, text_pairs
from crosspatch.paths.pathset import (
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
from crosspatch.paths.scores import PathTest, test_paths
from crosspatch.paths.sender import Mediation, SenderEffects, mediation, path_patch, sender_paths

__all__ = [
    "DISSIMILARITIES",
    "Attribution",
    "Dissimilarity",
    "Mediation",
    "Pairs",
    "PathReadout",
    "PathSet",
    "PathTest",
    "SenderEffects",
    "attribute",
    "avoiding",
    "canonical",
    "contains",
    "count",
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
    "make_plan",
    "mediation",
    "nothing",
    "path_patch",
    "paths",
    "require_some",
    "sender_paths",
    "task_pairs",
    "test_paths",
    "text_pairs",
    "union",
    "via",
]
