"""Scores of domains: agreement with an annotation, spatial continuity, and integration of several sections.

Agreement compares two labelings of the same spots. Spots without an annotation (None, NaN or an empty string) are
excluded. Continuity needs no annotation: it measures how compact domains are in space. Integration measures, in an
embedding of several sections, whether spots of one kind lie together and whether the sections mix among them. The
memory of every score is linear in the number of spots.
"""

from ._agreement import adjusted_rand_index, agreement, completeness, homogeneity, normalized_mutual_info
from ._continuity import chaos, continuity, continuity_of_each, pas, spatial_silhouette
from ._integration import (
    clisi,
    graph_connectivity,
    ilisi,
    integration_scores,
    integration_scores_of_each,
    isolated_labels_f1,
    section_agreement,
    silhouette_batch,
    silhouette_label,
)

__all__ = [
    "adjusted_rand_index",
    "agreement",
    "chaos",
    "clisi",
    "completeness",
    "continuity",
    "continuity_of_each",
    "graph_connectivity",
    "homogeneity",
    "ilisi",
    "integration_scores",
    "integration_scores_of_each",
    "isolated_labels_f1",
    "normalized_mutual_info",
    "pas",
    "section_agreement",
    "silhouette_batch",
    "silhouette_label",
    "spatial_silhouette",
]
