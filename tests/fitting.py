"""A complete run on a small tissue, and a fingerprint of all that it computes; imported by other processes, too."""

import hashlib

import amilst_lite as amilst

QUICK = {"epochs": 3, "n_networks": 1, "n_init": 2, "shrinkage": 0.2, "network_share": 0.3}


def tissue(seed=1):
    return amilst.simulate_section(150, 40, 3, seed=seed)


def fitted(seed, **options):
    """The tissue with domains, and the model."""
    adata = tissue()
    return adata, amilst.identify_domains(adata, 3, seed=seed, **QUICK, **options)


def bits(adata):
    """Hash of every array that a run has written."""
    found = hashlib.sha256()
    arrays = [adata.obs[name].to_numpy() for name in sorted(adata.obs) if name.startswith("amilst_")]
    arrays += [adata.obsm[name] for name in sorted(adata.obsm) if name.startswith("X_amilst")]
    arrays += [adata.obsp[name].data for name in sorted(adata.obsp)]
    assert len(arrays) >= 7
    for array in arrays:
        found.update(str(array.tolist() if array.dtype == object else array.tobytes()).encode())
    return found.hexdigest()


def bits_of_a_fit(seed):
    """For processes and threads."""
    return bits(fitted(int(seed))[0])
