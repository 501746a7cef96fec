"""Names of the files that `crosspatch circuit` writes."""

CIRCUIT, RUN, GATES = "circuit.json", "find.json", "gates.json"
SCORES, EVALUATION, FRONTIER, STABILITY = "scores", "evaluation", "frontier", "stability"
TESTS, SPECIFICITY = "tests", "specificity"
PARTS = (SCORES, EVALUATION, FRONTIER, STABILITY, TESTS, SPECIFICITY)
"""Folders in the folder of a circuit."""
VERIFICATION, WORST, RANKING = "verification.json", "worst.json", "ranking.json"
FOLDER = "circuit"
"""Where `crosspatch localize` keeps its circuit."""
FORMAT, VERSION = "crosspatch-circuit-run", 1
