"""What every implementation of the dit ops is tested on: inputs, and an op against the reference in fp64.

Tensors are made in float64 from a seed, and rounded to the dtype under test before any implementation sees them.
"""

from dataclasses import dataclass, field

import torch

from budget import assert_op_within_budget
from losatok_ext import ops, use_backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# clips B, frames T, channels C
MODULATION_SIZES = [(1, 1, 3), (2, 7, 5), (3, 33, 40), (2, 70, 129), (1, 250, 512), (2, 0, 8), (0, 3, 8)]
PER_FRAME = [(False, False), (True, False), (False, True), (True, True)]  # shift, scale


@dataclass(frozen=True)
class Case:
    """One call of ``dit_attention``. ``rope`` is the number of features that turn; ``keys`` is S where it is not T."""

    batch: int = 2
    time: int = 9
    heads: int = 2
    size: int = 16
    keys: int | None = None
    rope: int = 0
    interleaved: bool = False
    norm: str | None = "rms"
    weights: bool = True
    lengths: tuple[int, ...] | None = None
    key_lengths: tuple[int, ...] | None = None
    packed: bool = False
    seed: int = field(default=0, compare=False)

    def __str__(self):
        text = f"{self.batch}x{self.time}x{self.heads}x{self.size}-{self.norm}"
        text += "" if self.keys is None else f"-keys{self.keys}"
        text += f"-rope{self.rope}{'i' * self.interleaved}" if self.rope else ""
        text += "" if self.weights else "-unweighted"
        text += "" if self.lengths is None else "-to" + "_".join(map(str, self.lengths))
        text += "" if self.key_lengths is None else "-keysto" + "_".join(map(str, self.key_lengths))
        return text + "-packed" * self.packed

    def tensors(self, dtype=torch.float64, device="cpu"):
        """q, k, v, q_weight, k_weight (None without); views of one projection where ``packed``."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*sizes):
            return torch.randn(*sizes, dtype=torch.float64, generator=generator).to(device, dtype)

        if self.packed:
            q, k, v = normal(self.batch, self.time, 3, self.heads, self.size).unbind(2)
        else:
            q = normal(self.batch, self.time, self.heads, self.size)
            keys = self.time if self.keys is None else self.keys
            k, v = (normal(self.batch, keys, self.heads, self.size) for _ in range(2))
        weights = [1 + normal(self.size) / 4 if self.norm and self.weights else None for _ in range(2)]
        return [q, k, v, *weights]

    def options(self, dtype=torch.float64, device="cpu"):
        """The keyword arguments."""
        result = {"norm": self.norm, "interleaved": self.interleaved}
        if self.rope:
            rates = 100.0 ** -torch.linspace(0, 1, self.rope // 2, dtype=torch.float64)
            angles = torch.arange(self.time, dtype=torch.float64)[:, None] * rates
            result["rope"] = (angles.cos().to(device, dtype), angles.sin().to(device, dtype))
        for name in ("lengths", "key_lengths"):
            values = getattr(self, name)
            result[name] = None if values is None else torch.tensor(values, device=device)
        return result


SMALL = (  # for any implementation, an interpreter included
    Case(),
    Case(time=1, size=1, norm=None),
    Case(norm="layer", rope=16, lengths=(9, 4)),
    Case(norm="layer", weights=False, rope=8, interleaved=True),
    Case(norm=None, rope=10, packed=True, lengths=(0, 7)),
    Case(time=33, size=32, rope=32, interleaved=True, packed=True, lengths=(33, 17)),
    Case(time=20, size=80, rope=32, packed=True),
    Case(time=5, keys=23, size=24, key_lengths=(23, 0)),
    Case(time=18, keys=3, size=7, norm="layer", lengths=(11, 18)),
)
LARGE = (  # several blocks of queries and keys
    Case(time=70, size=64, rope=64, packed=True, lengths=(70, 65)),
    Case(time=300, heads=3, size=80, rope=80, lengths=(300, 129)),
    Case(time=530, heads=1, size=96, norm="layer", rope=48, interleaved=True),
    Case(time=130, heads=1, size=128, rope=128, packed=True, lengths=(3, 130)),
    Case(time=65, keys=700, size=33, norm=None, key_lengths=(700, 513)),
    Case(time=150, heads=1, size=256, weights=False, lengths=(150, 1)),
    Case(batch=1, time=257, heads=1, size=17, norm="layer", rope=6),
)
CASES = SMALL + LARGE


def cast(tensors, dtype, device="cpu"):
    """Floating tensors in ``dtype``, all on ``device``; views of one tensor stay that."""
    return [t if t is None else t.to(device, dtype) for t in tensors]


def evaluate(op, tensors, need, backend, **options):
    """The output of ``op`` and the gradients of the tensors numbered in ``need``, for an uneven output gradient."""
    leaves = [t if t is None else t.detach().requires_grad_(i in need) for i, t in enumerate(tensors)]
    with use_backend(backend):
        output = op(*leaves, **options)
    if not need:
        return [output]
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(output.shape, dtype=torch.float64, generator=generator).to(output.device, output.dtype)
    return [output.detach(), *torch.autograd.grad(output, [leaves[i] for i in need], weights)]


def check(op, tensors, dtype, backend, device="cpu", need=None, wide_options=None, **options):
    """``op`` by ``backend`` against the reference in fp64, within the budget (float64: 1e-10)."""
    need = [i for i in (range(len(tensors)) if need is None else need) if tensors[i] is not None]
    result = evaluate(op, tensors, need, backend, **options)
    theirs = evaluate(op, tensors, need, "reference", **options)
    wide = cast(tensors, torch.float64, device)
    exact = evaluate(op, wide, need, "reference", **(options if wide_options is None else wide_options))
    assert_op_within_budget(result, theirs, exact, need, dtype, 1e-10)
    return result


def check_attention(case, dtype, backend, device="cpu", need=None):
    """``dit_attention`` on ``case``, gradients included; what lies past a length is zero."""
    options, wide = case.options(dtype, device), case.options(dtype, device)
    if case.rope:
        wide["rope"] = tuple(t.double() for t in wide["rope"])
    result = check(ops.dit_attention, case.tensors(dtype, device), dtype, backend, device, need, wide, **options)
    if need is not None:
        return result
    own = case.lengths if case.key_lengths is None and case.keys is None else case.key_lengths
    keys = [case.keys or case.time] * case.batch if own is None else own
    rows = [case.time] * case.batch if case.lengths is None else case.lengths
    for b in range(case.batch):
        past_row, past_key = (rows[b], keys[b]) if rows[b] and keys[b] else (0, 0)
        for tensor, past in zip(result[:4], (past_row, past_row, past_key, past_key), strict=False):
            assert not tensor[b, past:].any()
    return result


def modulation_inputs(sizes, per_frame, dtype=torch.float64, device="cpu", seed=0):
    """x [B, T, C], with a mean of its own in each frame, and one tensor for each of ``per_frame``: [B, (T,) C]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    batch, time, channels = sizes
    x = normal(*sizes) * 2 + normal(batch, time, 1)
    others = [normal(*sizes) if frames else normal(batch, channels) for frames in per_frame]
    return [t.to(device, dtype) for t in (x, *others)]
