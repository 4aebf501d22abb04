"""What one of several processes does in tests/nn/test_quantizers_processes.py: train on its share of each batch.

``python quantizer_ranks.py RANK SIZE STORE OUT`` saves the states and results of its process in OUT.
"""

import sys

import torch
import torch.distributed as dist

from losatok_ext.nn import GroupedConfig, LFQConfig, ResidualVQConfig, VQConfig, build_quantizer

DIM = 6
STEPS = 4
CASES = {
    "ema": VQConfig(codebook_size=16, decay=0.8, kmeans_rows=24, dead_below=0.6),
    "residual": ResidualVQConfig(codebook_size=12, stages=2, decay=0.8, kmeans=False, dead_below=0.6),
    "shared": ResidualVQConfig(codebook_size=12, stages=2, shared=True, kmeans=False, dead_below=0.6),
    "grouped": GroupedConfig(2, ResidualVQConfig(codebook_size=12, stages=2, kmeans_rows=24, dead_below=0.6)),
    "learned": VQConfig(codebook_size=12, codebook="learned", kmeans_rows=24, dead_below=0.9),
    "entropy": LFQConfig(bits=DIM, temperature=0.5, commitment_weight=0.0),
}
SHARES = [((4, 9), [9, 0, 5, 7]), ((3, 12), [12, 2, 11])]  # of each process: clips and time, and the lengths


def share(rank, step):
    (clips, time), lengths = SHARES[rank]
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(clips, time, DIM, generator=generator), torch.tensor(lengths)


def train(config, shares):
    """The quantizer after some steps, and the gradient of each to its latents."""
    torch.manual_seed(7)
    quantizer = build_quantizer(config, DIM)
    grads = []
    for step in range(STEPS):
        x, lengths = shares(step)
        x.requires_grad_()
        losses = quantizer(x, lengths).losses
        grads.append(torch.autograd.grad(sum(losses.values()), x)[0])
    return quantizer.state_dict(), grads


def main(rank, size, store, out):
    torch.set_num_threads(1)
    quantizers = {}
    early = build_quantizer(CASES["ema"], DIM)  # before there is a process group: it is looked up when used
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for name, config in CASES.items():

        def shares(step):
            if rank:
                torch.manual_seed(1000 + step)  # the random numbers that count are those of rank 0
            return share(rank, step)

        quantizers[name] = train(config, shares)
    early(*share(rank, 0))
    quantizers["early"] = early.state_dict(), []
    dist.barrier()
    torch.save(quantizers, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
