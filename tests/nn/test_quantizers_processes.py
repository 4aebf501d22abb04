"""Two processes with a share of each batch hold the codebooks that one with all of it holds."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nn.quantizer_ranks import CASES, SHARES, share, train

SCRIPT = Path(__file__).with_name("quantizer_ranks.py")


def joint(step):
    """The valid frames of rank 0, then those of rank 1, as one clip."""
    shares = [share(rank, step) for rank in range(len(SHARES))]
    rows = [clip[:end] for x, lengths in shares for clip, end in zip(x, lengths, strict=True)]
    return torch.cat(rows).unsqueeze(0), None


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    size = len(SHARES)
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(size), str(folder / "store"), str(folder / f"{rank}.pt")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


@pytest.mark.parametrize("name", [*CASES, "early"])
def test_all_processes_hold_the_same(ranks, name):
    first, second = (rank[name][0] for rank in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in CASES if name != "entropy"])
def test_they_hold_what_one_process_would(ranks, name):
    state, _ = train(CASES[name], joint)
    for key, value in state.items():
        torch.testing.assert_close(ranks[0][name][0][key], value, rtol=1e-4, atol=1e-5)


def test_the_diversity_of_a_batch_is_that_of_all_processes(ranks):
    """The mean of the processes' gradients is that of the one loss, as DistributedDataParallel takes it."""
    config = CASES["entropy"]
    _, grads = train(config, joint)
    for step, expected in enumerate(grads):
        parts = [
            clip[:end] / len(SHARES)
            for (_, lengths), rank in zip(SHARES, ranks, strict=True)
            for clip, end in zip(rank["entropy"][1][step], lengths, strict=True)
        ]
        averaged, whole = certainty(config, step)
        torch.testing.assert_close(torch.cat(parts) - averaged, expected[0] - whole, rtol=1e-4, atol=1e-6)


def certainty(config, step):
    """The gradient of the first part of the loss, of which each process takes its own mean; and of the joint mean."""
    shares = joint(step)[0][0].split([sum(lengths) for _, lengths in SHARES])
    results = []
    for counts in ([len(part) * len(SHARES) for part in shares], [sum(map(len, shares))] * len(SHARES)):
        rows = [part.clone().requires_grad_() for part in shares]
        loss = torch.zeros(())
        for part, count in zip(rows, counts, strict=True):
            logits = 4 * config.scale / config.temperature * part
            loss = loss + config.entropy_weight * (F.softplus(logits) - logits * logits.sigmoid()).sum() / count
        results.append(torch.cat(torch.autograd.grad(loss, rows)))
    return results
