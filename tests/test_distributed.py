"""Runs of several processes give what one process gives."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import amilst_lite as amilst
from amilst_lite import distributed
from amilst_lite.errors import AmilstError, InputError
from amilst_lite.metrics import adjusted_rand_index

K = 4
QUICK = {"epochs": 4, "n_init": 4, "shrinkage": 0.2, "network_share": 0.0}


def make_section(number, n_spots):
    """A section with an effect of its own on the counts of some genes."""
    adata = amilst.simulate_section(n_spots, 80, K, seed=number)
    rng = np.random.default_rng(number)
    counts = adata.X.toarray() * rng.uniform(0.7, 1.4, 80)
    adata.X = np.rint(counts).astype(np.float32)
    adata.obs_names = [f"{number}-{name}" for name in adata.obs_names]
    adata.obs["section"] = f"s{number}"
    return adata


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(arguments, size, **options):
    """One process for each rank, as torchrun would start them."""
    environment = {
        **os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        for rank in range(size)
    ]


def finish(processes, timeout=300):
    try:
        return [(*process.communicate(timeout=timeout), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()


SCRIPT = """
    import sys
    import anndata as ad, numpy as np, torch
    import amilst_lite as amilst
    from amilst_lite.distributed import alone, column_means, median, ranks, sampled, together

    with together() as group:
        assert group is ranks() and group.size == 2
        # rank 0 has the rows 0 to 2, rank 1 the rows 3 to 7
        whole = np.arange(24.0).reshape(8, 3)
        own = whole[:3] if group.rank == 0 else whole[3:]
        assert group.place(len(own)) == ((0, 8) if group.rank == 0 else (3, 8))
        assert group.sum(len(own)) == 8 and isinstance(group.sum(len(own)), int)
        np.testing.assert_array_equal(group.sum(own.sum(0)), whole.sum(0))
        numbers, total = group.total(torch.tensor([2]), torch.tensor([0.5]))
        assert numbers.tolist() == [4] and numbers.dtype == torch.int64 and total.tolist() == [1.0]
        np.testing.assert_array_equal(group.gather(own > 4), whole > 4)
        np.testing.assert_array_equal(group.take(own, np.array([1, 2, 3, 7])), whole[[1, 2, 3, 7]])
        for values in (whole.ravel(), whole.ravel()[:-1], np.zeros(0)):
            half = values[:5] if group.rank == 0 else values[5:]
            expected = float(np.median(values)) if len(values) else 0.0
            assert median(half) == expected and (len(values) % 2 == 0) | (median(half, lower=True) == expected)
        np.testing.assert_array_equal(sampled(own, most=4)[0], whole[::2])
        np.testing.assert_array_equal(column_means(torch.from_numpy(own)), whole.mean(0))
        assert group.numbered(np.array([0, 1])).tolist() == [2 * group.rank, 2 * group.rank + 1]
        assert group.same(group.rank) == 0 and group.largest(group.rank) == 1
        assert group.objects("ab"[group.rank]) == ["a", "b"]
        assert group.to_first(group.rank) == ([0, 1] if group.rank == 0 else None)
        with alone():
            assert ranks().size == 1

        adata = ad.concat([ad.read_h5ad(path) for path in sys.argv[2 + 2 * group.rank : 4 + 2 * group.rank]])
        amilst.identify_domains(adata, 4, sample_key="section", **SETTINGS)
        results = group.to_first(adata)
    if results is not None:
        ad.concat(results, pairwise=True, uns_merge="first").write_h5ad(sys.argv[1])
"""


@pytest.mark.parametrize("n_spots", [250, pytest.param(6000, marks=pytest.mark.slow)])
def test_two_processes_find_the_domains_of_one(tmp_path, n_spots):
    sections = [make_section(number, n_spots + 10 * number) for number in range(4)]
    for number, section in enumerate(sections):
        section.write_h5ad(tmp_path / f"{number}.h5ad")
    settings = QUICK if n_spots < 1000 else {**QUICK, "shrinkage": None}
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(SCRIPT).replace("SETTINGS", repr(settings)))
    files = [str(tmp_path / f"{number}.h5ad") for number in range(4)]
    processes = start([str(script), str(tmp_path / "result.h5ad"), *files], 2)
    one = ad.concat(sections)
    amilst.identify_domains(one, 4, sample_key="section", **settings)
    for _, errors, status in finish(processes):
        assert status == 0, errors
    two = ad.read_h5ad(tmp_path / "result.h5ad")
    assert list(two.obs_names) == list(one.obs_names)
    assert adjusted_rand_index(one.obs["amilst_domain"], two.obs["amilst_domain"]) >= 0.999
    # the network, which sees other tiles, has no share here
    np.testing.assert_allclose(two.obsm["X_amilst_pca"], one.obsm["X_amilst_pca"], atol=1e-3)
    records = one.uns["amilst"], two.uns["amilst"]
    assert records[0]["integration"]["batch_correction"] == records[1]["integration"]["batch_correction"]
    np.testing.assert_allclose(
        records[0]["integration"]["shift"], records[1]["integration"]["shift"], atol=1e-3
    )


def test_without_torchrun_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with distributed.together() as group:
        assert (group.rank, group.size, distributed.launched()) == (0, 1, 1)
        rows = np.arange(6).reshape(3, 2)
        assert group.take(rows, np.array([0, 2])).tolist() == [[0, 1], [4, 5]]
        assert group.gather(rows) is rows
        assert distributed.median(np.array([3.0, 1.0, 2.0, 7.0])) == 2.5
        assert distributed.median(np.array([3.0, 1.0, 2.0, 7.0]), lower=True) == 2.0
    assert not distributed.restarted()


@pytest.mark.parametrize(
    ("sizes", "n_ranks", "expected"),
    [
        ([1, 1, 1, 1], 2, [[0, 1], [2, 3]]),
        ([100, 1, 1], 3, [[0], [1], [2]]),
        ([1, 1, 100], 2, [[0, 1], [2]]),
        ([1, 1, 1, 50, 1], 2, [[0, 1, 2], [3, 4]]),
    ],
)
def test_sections_are_dealt_by_size(sizes, n_ranks, expected):
    assert [own.tolist() for own in distributed.deal(sizes, n_ranks)] == expected


def test_more_processes_than_sections_are_refused():
    with pytest.raises(InputError, match="2 processes need at least as many sections"):
        distributed.deal([5], 2)


def test_what_has_no_distributed_form_is_refused():
    token = distributed._RANKS.set(_Two())
    try:
        with pytest.raises(InputError, match="run of several processes needs the default recipe"):
            amilst.AMILST(3, preset="published").fit(
                np.random.default_rng(0).normal(size=(40, 5)),
                coordinates=np.random.default_rng(1).random((40, 2)),
            )
    finally:
        distributed._RANKS.reset(token)


class _Two(distributed.Ranks):
    """Two ranks of which the other has the same rows."""

    def __init__(self):
        super().__init__(0, 2)

    def sum(self, values):
        return 2 * values


def test_the_end_of_another_process_is_named(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(AmilstError, match="another process of this run ended"), distributed.together():
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    with pytest.raises(RuntimeError, match="something else"), distributed.together():
        raise RuntimeError("something else")
    assert distributed.ranks().size == 1


# --- the command line -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sections")
    for number in range(4):
        section = make_section(number, 400)
        del section.obs["section"]
        section.write_h5ad(folder / f"s{number}.h5ad")
    return [str(folder / f"s{number}.h5ad") for number in range(4)]


def command(inputs, output, *more):
    return ["-m", "amilst_lite", "run", *inputs, "-k", str(K), "--epochs", "4", "-o", str(output), *more]


def table(folder):
    return pd.read_csv(folder / "domains.csv", index_col=0).sort_index()


@pytest.mark.slow
@pytest.mark.parametrize("one_file", [False, True])
def test_command_line_with_three_processes(tmp_path, inputs, one_file):
    if one_file:
        sections = {Path(path).stem: ad.read_h5ad(path) for path in inputs}
        ad.concat(sections, label="section").write_h5ad(tmp_path / "all.h5ad")
        inputs = [str(tmp_path / "all.h5ad"), "--sample-key", "section"]
    done = finish(start(command(inputs, tmp_path / "three"), 3))
    assert [status for *_, status in done] == [0, 0, 0], done
    subprocess.run([sys.executable, *command(inputs, tmp_path / "one")], check=True, capture_output=True)
    one, three = table(tmp_path / "one"), table(tmp_path / "three")
    assert adjusted_rand_index(one["domain"], three.loc[one.index, "domain"]) >= 0.999
    record = json.loads((tmp_path / "three" / "run.json").read_text())
    assert record["processes"]["n"] == 3 and record["n_spots"] == len(one)
    # one process talks, and the same files come out
    assert not done[1][1] and not done[2][1]
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        path.name for path in (tmp_path / "three").iterdir()
    }


@pytest.mark.slow
def test_of_many_spots_every_process_writes_its_sections(tmp_path, inputs):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom amilst_lite import results\nfrom amilst_lite.cli import main\n"
        "results._MOST_SPOTS = 500\nsys.exit(main(sys.argv[1:]))\n"
    )
    done = finish(start([str(program), *command(inputs, tmp_path / "out")[2:]], 2))
    assert [status for *_, status in done] == [0, 0], done
    sections = [ad.read_h5ad(tmp_path / "out" / "sections" / f"s{number}.h5ad") for number in range(4)]
    whole = table(tmp_path / "out")
    assert sum(section.n_obs for section in sections) == len(whole) == 1600
    for section in sections:
        assert (section.obs["amilst_domain"].astype(int) == whole.loc[section.obs_names, "domain"]).all()
        assert section.obsp["spatial_connectivities"].shape == (400, 400)
    sample = ad.read_h5ad(tmp_path / "out" / "result.h5ad")
    assert 300 < sample.n_obs <= 500
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["n_spots"] == 1600 and any("400 of 1600" in line for line in record["left_out"])


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_its_message(tmp_path, inputs):
    broken = ad.read_h5ad(inputs[3])
    broken.X[0, 0] = np.nan
    broken.write_h5ad(tmp_path / "s3.h5ad")
    started = time.monotonic()
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            *command([*inputs[:3], str(tmp_path / "s3.h5ad")], tmp_path / "out"),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1  # of torchrun
    assert "missing values in X of s3" in done.stderr
    assert time.monotonic() - started < 120
    assert [path.name for path in tmp_path.iterdir()] == ["s3.h5ad"]


@pytest.mark.slow
def test_a_killed_process_is_started_again(tmp_path, inputs):
    arguments = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
    ]
    process = subprocess.Popen(
        [*arguments, *command(inputs, tmp_path / "out", "--epochs", "60")], stderr=subprocess.PIPE, text=True
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.strip() == "graph":
            os.kill(_children(process.pid)[-1], signal.SIGKILL)
            break
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 0, "".join(lines) + rest
    assert sum(line.startswith("reading") for line in [*lines, *rest.splitlines()]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(table(tmp_path / "out")) == 1600


def _children(parent):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.fixture
def two_hosts():
    """Two network namespaces with addresses of their own, joined by a cable."""
    if shutil.which("ip") is None or os.getuid() != 0:
        pytest.skip("needs iproute2 and root")
    names = [f"amilst{os.getpid()}{letter}" for letter in "ab"]
    cable = [f"am{os.getpid() % 100000}{letter}" for letter in "ab"]
    steps = [
        f"netns add {names[0]}",
        f"netns add {names[1]}",
        f"link add {cable[0]} type veth peer name {cable[1]}",
    ]
    for number in range(2):
        steps += [
            f"link set {cable[number]} netns {names[number]}",
            f"-n {names[number]} addr add 10.77.0.{number + 1}/24 dev {cable[number]}",
            f"-n {names[number]} link set {cable[number]} up",
            f"-n {names[number]} link set lo up",
        ]
    try:
        for step in steps:
            done = subprocess.run(["ip", *step.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")
        yield list(zip(names, cable, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_two_hosts_of_which_one_is_killed_and_started_again(tmp_path, inputs, two_hosts):
    subprocess.run([sys.executable, *command(inputs, tmp_path / "one")], check=True, capture_output=True)
    hosts = [
        subprocess.Popen(
            [
                "ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={interface}",
                sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                "--max-restarts", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29511",
                "--rdzv-id", "test",
                # the names of the hosts do not lead to these addresses, by which torchrun would know where to listen
                "--rdzv-conf", f"is_host={1 - number}", "--local-addr", f"10.77.0.{number + 1}",
                *command(inputs, tmp_path / "two"),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number, (name, interface) in enumerate(two_hosts)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            workers = _children(hosts[1].pid)
            if workers and any(
                ".two." in path.name or path.name.startswith(".two") for path in tmp_path.iterdir()
            ):
                os.kill(workers[-1], signal.SIGKILL)  # while it reads or computes
                break
            time.sleep(0.2)
        else:
            pytest.fail("the run did not begin")
        errors = [host.communicate(timeout=400)[1] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], errors
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert adjusted_rand_index(one["domain"], two.loc[one.index, "domain"]) >= 0.999
