"""Compare the network's arithmetic with reference values of the published one.

    python benchmarks/check_reference.py FILE.npz

The file holds inputs, a graph, the weights of one published network in evaluation mode, and its outputs, losses and
gradients. For every quantity in the file this prints our largest deviation, relative to the largest reference value
of that quantity, and exits with status 1 if any exceeds 1e-5. Widths are taken from the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amilst_lite.config import NetworkConfig
from amilst_lite.nn import losses
from amilst_lite.nn.model import AMILSTNetwork
from amilst_lite.spatial.graph import SpatialGraph

TOLERANCE = 1e-5
NEIGHBORS = 12
CENTERS = "cluster_layer"  # the published name of the cluster centers, which our network does not hold

# weights of the published objective (10 · reconstruction + 0.1 · (links + KL) + 10 · clustering)
RECONSTRUCTION, GRAPH, CLUSTERING = 10.0, 0.1, 10.0


def our_names(n_blocks: int) -> dict[str, tuple[str, bool]]:
    """Published parameter name → our name and whether the matrix is transposed."""
    names = {
        "gc1.weight": ("graph_encoder.hidden.weight", False),
        "gc2.weight": ("graph_encoder.mean.weight", False),
        "gc3.weight": ("graph_encoder.log_sigma.weight", False),
    }
    places = {f"encoder.encoder_L{i + 1}": f"encoder.blocks.{i}" for i in range(n_blocks)}
    places["decoder.decoder_L0"] = "decoder"
    for theirs, ours in places.items():
        names[f"{theirs}.0.weight"] = (f"{ours}.linear.weight", True)
        names[f"{theirs}.0.bias"] = (f"{ours}.linear.bias", False)
        for part in ("weight", "bias", "running_mean", "running_var"):
            names[f"{theirs}.1.{part}"] = (f"{ours}.norm.{part}", False)
    return names


def load_network(
    reference: dict[str, np.ndarray],
) -> tuple[AMILSTNetwork, torch.nn.Parameter, dict[str, tuple[str, bool]]]:
    """Our network with the reference's weights, in evaluation mode; the cluster centers; names of parameters."""
    params = {
        key.removeprefix("param/"): value for key, value in reference.items() if key.startswith("param/")
    }
    n_blocks = sum(key.startswith("encoder.") and key.endswith(".0.weight") for key in params)
    widths = tuple(params[f"encoder.encoder_L{i + 1}.0.weight"].shape[0] for i in range(n_blocks))
    config = NetworkConfig(
        feature_widths=widths,
        graph_hidden=params["gc1.weight"].shape[1],
        graph_latent=params["gc2.weight"].shape[1],
        decoder="block",
    )
    network = AMILSTNetwork(reference["features"].shape[1], config)
    names = our_names(n_blocks)
    state = network.state_dict()
    for theirs, (ours, transposed) in names.items():
        value = torch.from_numpy(params[theirs])
        state[ours] = value.T.contiguous() if transposed else value
    network.load_state_dict(state)
    centers = torch.nn.Parameter(torch.from_numpy(params[CENTERS]))
    return network.eval(), centers, names


def compute(reference: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our value of every quantity for which the file holds a reference."""
    coordinates = reference["coordinates"]
    n = len(coordinates)
    graph = SpatialGraph.from_coordinates(coordinates, n_neighbors=NEIGHBORS)
    # the file numbers the spots as given, the graph in its space-filling order
    order = torch.from_numpy(graph.order)
    adjacency = graph.adjacency()
    rows, columns = order[adjacency.indices()]
    ours: dict[str, np.ndarray | Tensor] = {}
    sort = np.lexsort((columns.numpy(), rows.numpy()))
    ours["adj_rows"], ours["adj_cols"] = rows[sort], columns[sort]
    ours["adj_norm_values"] = adjacency.values()[sort]
    ours["norm_value"] = np.asarray(n * n / (2.0 * (n * n - graph.edges.shape[1])))
    edge_rows, edge_columns = order[graph.edges]
    sort = np.lexsort((edge_columns.numpy(), edge_rows.numpy()))
    ours["edge_rows"], ours["edge_cols"] = edge_rows[sort], edge_columns[sort]

    network, centers, names = load_network(reference)
    features = torch.from_numpy(reference["features"])[order]
    output = network(features, adjacency)
    q = losses.soft_assignment(output.latent, centers)
    target = losses.target_distribution(q)
    rank = torch.from_numpy(graph.rank)
    ours["out_latent"] = output.latent[rank]
    ours["out_mu"] = output.mean[rank]
    ours["out_logvar"] = output.log_sigma[rank]
    ours["out_reconstruction"] = output.reconstruction[rank]
    ours["out_q"] = q[rank]
    ours["out_feature_latent"] = output.f[rank]
    ours["dec_target"] = target[rank]

    upper = graph.edges[:, graph.edges[0] < graph.edges[1]]
    kl = losses.gaussian_kl(output.mean, output.log_sigma)
    # the published graph loss is links and KL together
    links = losses.masked_link_loss(output.latent, upper) + kl
    reconstruction = losses.reconstruction_error(output.reconstruction, features)
    clustering = losses.clustering_divergence(target, q)
    total = RECONSTRUCTION * reconstruction + GRAPH * links + CLUSTERING * clustering
    ours["loss_graph_masked"] = links
    ours["loss_graph_full"] = full_link_loss(output.latent, upper) + kl
    ours["loss_kld"] = kl
    ours["loss_reconstruction"] = reconstruction
    ours["loss_dec_kl"] = clustering
    ours["loss_total"] = total

    total.backward()
    gradients = {**dict(network.named_parameters()), CENTERS: centers}
    for theirs, (name, transposed) in {**names, CENTERS: (CENTERS, False)}.items():
        if name in gradients and f"grad/{theirs}" in reference:
            gradient = gradients[name].grad
            assert gradient is not None, name
            ours[f"grad/{theirs}"] = gradient.T if transposed else gradient
    return {
        key: value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for key, value in ours.items()
    }


def full_link_loss(latent: Tensor, upper: Tensor) -> Tensor:
    """The link loss without its mask, over all N² pairs.

    The package never computes it, since it costs O(N²); here it checks latent and edges again. Row blocks limit
    its memory: Σ softplus(s) over all pairs, less s on edges and loops.
    """
    n = latent.shape[0]
    everywhere = sum(torch.nn.functional.softplus(block @ latent.T).sum() for block in latent.split(1024))
    on_edges = 2.0 * (latent[upper[0]] * latent[upper[1]]).sum() + latent.square().sum()
    return (everywhere - on_edges) / (2.0 * (n * n - 2.0 * upper.shape[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="reference values, .npz")
    arguments = parser.parse_args()
    with np.load(arguments.file) as archive:
        reference = {key: archive[key] for key in archive.files}
    ours = compute(reference)

    inputs = {"coordinates", "features"}
    failed = []
    print(f"{'quantity':40s} {'shape':>12s} {'largest relative deviation':>28s}")
    for key in reference:
        if key in inputs or key.startswith("param/"):
            continue
        if key not in ours:
            failed.append(key)
            print(f"{key:40s} {'':>12s} {'not computed':>28s}")
            continue
        expected, found = reference[key].astype(np.float64), ours[key].astype(np.float64)
        if expected.shape != found.shape:
            deviation = np.inf
        else:
            scale = np.abs(expected).max(initial=0.0)
            deviation = np.abs(found - expected).max(initial=0.0) / (scale if scale > 0 else 1.0)
        if not deviation <= TOLERANCE:
            failed.append(key)
        print(f"{key:40s} {'×'.join(map(str, expected.shape)) or 'scalar':>12s} {deviation:28.2e}")
    if failed:
        print(f"FAILED: {len(failed)} beyond {TOLERANCE:g}: {', '.join(failed)}")
        return 1
    print(f"all within {TOLERANCE:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
