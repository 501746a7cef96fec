"""Behaviours found without supervision: confident predictions, clustered by what the model does for them."""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.discover.agreement import baselines, comparison, histogram_vectors, rand_index, stability
    from crosspatch.discover.circuits import CircuitSettings, cluster_circuits
    from crosspatch.discover.clustering import angular_similarity, cluster
    from crosspatch.discover.clusters import Clustering, load_clustering, read_clusters
    from crosspatch.discover.draw import draw_samples
    from crosspatch.discover.gradients import gradient_hashes, hashed_gradients
    from crosspatch.discover.hashing import Hash, hash_of
    from crosspatch.discover.run import DiscoverSettings, Discovery, discover
    from crosspatch.discover.samples import Samples, load_samples
    from crosspatch.discover.setup import setup_of_samples
    from crosspatch.discover.text import Document, read_documents
    from crosspatch.discover.vectors import KINDS, Vectors, default_places, load_vectors, sample_vectors

_HOMES = {
    "agreement": ("baselines", "comparison", "histogram_vectors", "rand_index", "stability"),
    "circuits": ("CircuitSettings", "cluster_circuits"),
    "clustering": ("angular_similarity", "cluster"),
    "clusters": ("Clustering", "load_clustering", "read_clusters"),
    "draw": ("draw_samples",),
    "gradients": ("gradient_hashes", "hashed_gradients"),
    "hashing": ("Hash", "hash_of"),
    "run": ("DiscoverSettings", "Discovery", "discover"),
    "samples": ("Samples", "load_samples"),
    "setup": ("setup_of_samples",),
    "text": ("Document", "read_documents"),
    "vectors": ("KINDS", "Vectors", "default_places", "load_vectors", "sample_vectors"),
}

__all__ = [
    "KINDS",
    "CircuitSettings",
    "Clustering",
    "DiscoverSettings",
    "Discovery",
    "Document",
    "Hash",
    "Samples",
    "Vectors",
    "angular_similarity",
    "baselines",
    "cluster",
    "cluster_circuits",
    "comparison",
    "default_places",
    "discover",
    "draw_samples",
    "gradient_hashes",
    "hash_of",
    "hashed_gradients",
    "histogram_vectors",
    "load_clustering",
    "load_samples",
    "load_vectors",
    "rand_index",
    "read_clusters",
    "read_documents",
    "sample_vectors",
    "setup_of_samples",
    "stability",
]

make_lazy(__name__, _HOMES)
