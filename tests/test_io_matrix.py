"""Indices of sparse matrices from files, which scipy uses without looking at them."""

import numpy as np
import pytest
from scipy import sparse

from amilst_lite.io.matrix import check_indices, to_csr

DATA, INDICES, INDPTR = np.ones(4, np.float32), np.array([0, 2, 1, 2]), np.array([0, 2, 2, 4])


def matrix(form, indices=INDICES, indptr=INDPTR):
    """A matrix with these arrays, which the constructor would refuse in part."""
    made = form((DATA, INDICES.copy(), INDPTR.copy()), shape=(3, 3))
    made.indices, made.indptr = np.asarray(indices), np.asarray(indptr)
    return made


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize(
    ("indices", "indptr"),
    [
        (INDICES.astype(float), INDPTR),
        (INDICES, INDPTR + 0.0),
        ([0, 3, 1, 2], INDPTR),
        ([0, -1, 1, 2], INDPTR),
        (INDICES, [0, 3, 2, 4]),
        (INDICES, [0, 2, 2, 5]),
        (INDICES, [1, 2, 2, 4]),
        (INDICES, [0, 8388654, 2, 0]),  # scipy stops looking where the last is 0
    ],
)
def test_indices_that_do_not_fit(form, indices, indptr):
    with pytest.raises(ValueError, match=r"ind|pointer"):
        check_indices(matrix(form, indices, indptr))
    with pytest.raises(ValueError, match=r"ind|pointer"):
        to_csr(matrix(form, indices, indptr))


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_indices_that_fit(form, dtype):
    made = matrix(form, INDICES.astype(dtype), INDPTR.astype(dtype))
    check_indices(made)
    np.testing.assert_array_equal(to_csr(made).toarray(), made.toarray())


def test_other_matrices_have_none():
    check_indices(np.zeros((2, 2)))
    check_indices(sparse.coo_matrix((2, 2)))
