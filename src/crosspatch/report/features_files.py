"""Names of the files that `crosspatch features circuit` writes."""

RUN, GATES, EXACT, CARDS = "features.json", "gates.json", "exact.json", "cards.json"
CIRCUIT, EFFECTS = "feature-circuit.json", "feature-effects.json"
CARDS_PAGE = "cards.html"
EVALUATION, CURVES, EDGES = "evaluation", "curves", "edges"
PARTS = (EVALUATION, CURVES, EDGES)
"""Folders in the folder of a feature circuit, each with evaluations."""
FOLDER = "features"
"""Where the report of `crosspatch localize` looks for a feature circuit."""
FORMAT, VERSION = "crosspatch-feature-run", 1
