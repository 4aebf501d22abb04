"""The search for nearest codes: products find candidates, differences decide. What is fused and why is in
``quantize.py``.

A lane is the set of codes with one remainder modulo LANES. For each row and lane, the scan keeps the smallest lower
bound of a code's half squared distance (without the row's energy, which all codes share), the tile that it came from,
and the second smallest bound: no index of a code, no reduction across threads. Where the bounds leave several codes,
differences decide, always by :func:`_sum_of_squares`, whose order of summation is fixed: a row and a code have one
distance, however it was found, so results do not depend on tiles. For that, launches forbid fused multiply-add.
"""

import triton
import triton.language as tl

from losatok_ext.triton_kernels.rows import rows_of_clips

INFINITY = tl.constexpr(float("inf"))
LARGEST = tl.constexpr(3.4028234663852886e38)
SEARCHABLE_NORM = tl.constexpr(6e18)
"""Longer rows go by differences alone: their products with the longest codes would overflow."""
ROUND_UP = tl.constexpr(1.000001)
NORM_MARGIN = tl.constexpr(4e-6)
"""What half squared norms of codes are lowered by, relative: more than their rounding."""
UNDERFLOW = tl.constexpr(4e-37)
"""What underflow takes off a feature's share of a bound, at most."""


@triton.jit
def _sum_of_squares(v, WIDTH: tl.constexpr):
    """The sums of squares of the rows of v [*, WIDTH], WIDTH a power of two: neighbours first, then pairs of them."""
    v = v * v
    for _ in tl.static_range(20):
        if v.shape[1] > 1:
            even, odd = tl.split(tl.reshape(v, [v.shape[0], v.shape[1] // 2, 2]))
            v = even + odd
    tl.static_assert(v.shape[1] == 1)
    return tl.reshape(v, [v.shape[0]])


@triton.jit
def _power_of_two(x):
    """The power of two at or below each positive float32, within 2^-100..2^126."""
    bits = tl.maximum(x, 7.888609052210118e-31).to(tl.int32, bitcast=True) & 0x7F800000
    return tl.minimum(bits, 253 << 23).to(tl.float32, bitcast=True)


@triton.jit
def centre_kernel(codes, centres, count, features, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """centres [stages, WIDTH] = the mean of some 256 finite codes of each stage, zeros past the features; codes
    [stages, count, features]. Grid (stages).
    """
    stage = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)[None, :]
    rows = tl.arange(0, ROWS)[:, None]
    step = tl.maximum(count // 256, 1)
    codes += stage * count * features
    total = tl.zeros([WIDTH], tl.float64)
    finite = 0
    for first in range(0, count, step * ROWS):
        k = first + rows * step
        c = tl.load(codes + k.to(tl.int64) * features + columns, mask=(k < count) & (columns < features), other=0.0)
        c = c.to(tl.float32)
        bad = tl.sum(tl.where(tl.abs(c) <= LARGEST, 0, 1), 1, keep_dims=True)
        total += tl.sum(tl.where(bad == 0, c, 0.0).to(tl.float64), 0)
        finite += tl.sum(tl.where((bad == 0) & (k < count), 1, 0))
    mean = total / tl.maximum(finite, 1).to(tl.float64)
    tl.store(centres + stage * WIDTH + tl.arange(0, WIDTH), mean.to(tl.float32))


@triton.jit
def prepare_kernel(
    codes, centres, high, low, half_norms, norms, scales, count, padded, features,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of each code less its stage's centre: its norm, rounded up; half its squared norm, rounded down; a power of two
    near its largest value; and in float16 the code over that, with ``low``, unless None, what rounding took. Grid
    (blocks of ``padded``, stages).

    codes [stages, count, features]; high, low [stages, padded, WIDTH]; half_norms, norms, scales [stages, padded]. A
    code that is not finite, and what pads ``count``, gets half norm infinity: it is never near. A finite one whose
    square overflows gets -infinity, which lets no bound decide.
    """
    stage = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    inside = (k < count) & (columns < features)
    at = codes + stage * count * features + k.to(tl.int64) * features + columns
    c = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    centre = tl.load(centres + stage * WIDTH + columns)
    bad = tl.sum(tl.where(tl.abs(c) <= LARGEST, 0, 1), 1, keep_dims=True) > 0
    v = tl.where(inside, c - centre, 0.0)
    squares = tl.sum(v.to(tl.float64) * v.to(tl.float64), 1, keep_dims=True)
    overflows = (squares < 2 * 3.4e38) == 0  # also where the centre did
    v = tl.where(bad | overflows, 0.0, v)
    norm = tl.where(bad | overflows, 0.0, tl.sqrt(squares).to(tl.float32) * ROUND_UP)
    half = (0.5 * squares * (1.0 - NORM_MARGIN)).to(tl.float32) - UNDERFLOW * features
    half = tl.where(bad | (k >= count), INFINITY, tl.where(overflows, -INFINITY, half))
    scale = _power_of_two(tl.max(tl.abs(v), 1, keep_dims=True))
    v = v * (1.0 / scale)
    rounded = v.to(tl.float16)
    row = stage * padded + k
    tl.store(half_norms + row, half, mask=k < padded)
    tl.store(norms + row, norm, mask=k < padded)
    tl.store(scales + row, scale, mask=k < padded)
    tl.store(high + row * WIDTH + columns, rounded, mask=k < padded)
    if low is not None:
        tl.store(low + row * WIDTH + columns, (v - rounded.to(tl.float32)).to(tl.float16), mask=k < padded)


@triton.jit
def _offer(best, index, distance, k):
    """The nearer of two codes, the lower of two as near; a NaN and an infinity never win."""
    wins = (distance < best) | ((distance == best) & (k < index))
    return tl.where(wins, distance, best), tl.where(wins, k, index)


@triton.jit
def _distances_to(rows, codes, k, active, features, WIDTH: tl.constexpr):
    """|row - codes[k]|^2 of each row [R, WIDTH] to its own code k [R], where ``active``; else of nothing."""
    columns = tl.arange(0, WIDTH)[None, :]
    mask = active[:, None] & (columns < features)
    c = tl.load(codes + k.to(tl.int64)[:, None] * features + columns, mask=mask, other=0.0).to(tl.float32)
    return _sum_of_squares(tl.where(mask, rows - c, 0.0), WIDTH)


@triton.jit
def _scan(row, codes, first, step, last, features, CODES: tl.constexpr, WIDTH: tl.constexpr):
    """The nearest to row [WIDTH] of the codes first, first + step, ... below last: distance and index, -1 for none."""
    columns = tl.arange(0, WIDTH)[None, :]
    best = tl.full([CODES], INFINITY, tl.float32)
    index = tl.full([CODES], -1, tl.int32)
    for start in range(first, last, step * CODES):
        k = start + tl.arange(0, CODES) * step
        mask = (k < last)[:, None] & (columns < features)
        c = tl.load(codes + k.to(tl.int64)[:, None] * features + columns, mask=mask, other=0.0).to(tl.float32)
        distance = _sum_of_squares(tl.where(mask, row[None, :] - c, 0.0), WIDTH)
        wins = (distance < best) & (k < last)
        best = tl.where(wins, distance, best)
        index = tl.where(wins, k, index)
    least = tl.min(best, 0)
    among = tl.where((best == least) & (index >= 0), index, 0x7FFFFFFF)
    lowest = tl.min(among, 0)
    return least, tl.where(lowest == 0x7FFFFFFF, -1, lowest)


@triton.jit
def _propose(
    rows, centres, high, low, half_norms, norms, scales, first_tile, last_tile, unit, features,
    EXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Per row and lane: the least bound, the next least, and the tile of the least; per row the norm less the centre,
    and whether its products mean anything. Bounds are exceeded by ``unit`` times the product of the norms at most.
    """
    columns = tl.arange(0, WIDTH)
    centred = tl.where(columns[None, :] < features, rows - tl.load(centres + columns)[None, :], 0.0)
    wide = centred.to(tl.float64)
    norm = tl.sqrt(tl.sum(wide * wide, 1)).to(tl.float32) * ROUND_UP
    usable = norm < SEARCHABLE_NORM  # not a NaN
    norm = tl.where(usable, norm, 0.0)
    centred = tl.where(usable[:, None], centred, 0.0)
    scale = _power_of_two(tl.max(tl.abs(centred), 1))
    centred = centred * (1.0 / scale)[:, None]
    x_high = centred.to(tl.float16)
    if low is not None:
        x_low = (centred - x_high.to(tl.float32)).to(tl.float16)
    slack = norm * unit if EXACT else norm * 0.0
    best = tl.full([BLOCK_M, LANES], INFINITY, tl.float32)
    second = tl.full([BLOCK_M, LANES], INFINITY, tl.float32)
    tiles = tl.full([BLOCK_M, LANES], first_tile, tl.int32)
    ns = tl.arange(0, BLOCK_N)
    at = ns[None, :] * WIDTH + columns[:, None]
    for tile in range(first_tile, last_tile):
        start = tile * BLOCK_N
        c_high = tl.load(high + tl.cast(start, tl.int64) * WIDTH + at)
        acc = tl.dot(x_high, c_high)
        if low is not None:
            acc = tl.dot(x_low, c_high, acc)
            acc = tl.dot(x_high, tl.load(low + tl.cast(start, tl.int64) * WIDTH + at), acc)
        half = tl.load(half_norms + start + ns)[None, :]
        lowered = tl.fma(-slack[:, None], tl.load(norms + start + ns)[None, :], half)
        bound = tl.fma(acc * tl.load(scales + start + ns)[None, :], -scale[:, None], lowered)
        bound = tl.min(tl.reshape(bound, [BLOCK_M, BLOCK_N // LANES, LANES]), 1)
        tiles = tl.where(bound < best, tile, tiles)
        second = tl.minimum(second, tl.maximum(best, bound))
        best = tl.minimum(best, bound)
    return best, second, tiles, norm, usable


@triton.jit
def _ceiling(
    best, tiles, norm, half_norms, norms, unit, features,
    BLOCK_N: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Per row, what the least half squared distance (less the row's energy) is known not to exceed, with room for the
    rounding of differences.
    """
    lanes = tl.arange(0, LANES)[None, :]
    least = tl.min(best, 1)
    lane = tl.min(tl.where(best == least[:, None], lanes, LANES - 1), 1)
    k = tl.sum(tl.where(lanes == lane[:, None], tiles, 0), 1) * BLOCK_N + lane
    doubt = tl.zeros_like(least)
    for _ in tl.static_range(BLOCK_N // LANES):
        half = tl.load(half_norms + k)
        margin = tl.where(half < INFINITY, 2.0 * NORM_MARGIN * tl.abs(half), 0.0)
        doubt = tl.maximum(doubt, unit * norm * tl.load(norms + k) + margin)
        k += LANES
    highest = least + 2.0 * doubt
    half_distance = tl.maximum(0.5 * norm * norm + highest, 0.0)
    rounding = 1.5e-7 * (features + 4.0) * half_distance
    return highest + rounding + UNDERFLOW * features * (1.0 + norm)


@triton.jit
def _decide(
    rows, valid, codes, best, second, tiles, ceiling, decidable, first, last, features,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, CODES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Distance and index, -1 for none, of the nearest of the codes first..last to each valid row, by differences: to
    each lane's proposal that may be the nearest; to all of a lane where the lane's next may be too; to all codes where
    bounds are of no use, or so many lanes have to be gone through that it costs no more.
    """
    lanes = tl.arange(0, LANES)[None, :]
    row_numbers = tl.arange(0, BLOCK_M)
    distance = tl.full([BLOCK_M], INFINITY, tl.float32)
    index = tl.full([BLOCK_M], -1, tl.int32)
    unclear = (second <= ceiling[:, None]) & (valid & decidable)[:, None]
    whole = valid & ((decidable == 0) | (tl.sum(unclear.to(tl.int32), 1) * 4 > LANES))
    unclear = unclear & (whole == 0)[:, None]
    pending = (best <= ceiling[:, None]) & (second > ceiling[:, None]) & (valid & (whole == 0))[:, None]
    while tl.max(tl.max(pending.to(tl.int32), 1), 0) > 0:
        lane = tl.min(tl.where(pending, lanes, LANES), 1)
        k = tl.sum(tl.where(lanes == lane[:, None], tiles, 0), 1) * BLOCK_N + lane
        for _ in tl.static_range(BLOCK_N // LANES):
            active = (lane < LANES) & (k < last)
            found = _distances_to(rows, codes, k, active, features, WIDTH)
            distance, index = _offer(distance, index, tl.where(active, found, INFINITY), k)
            k += LANES
        pending = pending & (lanes != lane[:, None])
    while tl.max(whole.to(tl.int32), 0) > 0:
        number = tl.min(tl.where(whole, row_numbers, BLOCK_M), 0)
        here = row_numbers == number
        row = tl.sum(tl.where(here[:, None], rows, 0.0), 0)
        least, k = _scan(row, codes, first, 1, last, features, CODES, WIDTH)
        distance = tl.where(here, least, distance)
        index = tl.where(here, k, index)
        whole = whole & (here == 0)
    # One number for a row and a lane: where the next one to go through is.
    numbers = row_numbers[:, None] * LANES + lanes
    while tl.max(tl.max(unclear.to(tl.int32), 1), 0) > 0:
        number = tl.min(tl.min(tl.where(unclear, numbers, BLOCK_M * LANES), 1), 0)
        here = row_numbers == number // LANES
        row = tl.sum(tl.where(here[:, None], rows, 0.0), 0)
        least, k = _scan(row, codes, first + number % LANES, LANES, last, features, CODES, WIDTH)
        nearer, lower = _offer(distance, index, least, k)
        distance = tl.where(here & (k >= 0), nearer, distance)
        index = tl.where(here & (k >= 0), lower, index)
        unclear = unclear & (numbers != number)
    return distance, index


@triton.jit
def search_kernel(
    x, lengths, codes, centres, high, low, half_norms, norms, scales, indices, distances,
    time, features, x_clip_stride, x_stride, rows, count, padded, stages, per_split, unit,
    FILTER: tl.constexpr, EXACT: tl.constexpr, CHAIN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, CODES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The nearest codes of BLOCK_M rows, of each of ``stages`` codebooks in turn what the ones before left over; grid
    (blocks of the ``rows`` = clips x time, splits).

    x [clips, time, features] by strides; codes [stages, count, features]; indices [splits, rows, stages], -1 past a
    length, and distances [splits, rows], 0 there, where not None. Split s has the codes s per_split .. (s + 1)
    per_split (a multiple of BLOCK_N) to itself. Without FILTER all goes by differences; ``high``, ``low``,
    ``half_norms``, ``norms``, ``scales`` and ``centres`` are those of :func:`prepare_kernel`. CHAIN keeps what is left
    over in registers.
    """
    row, clip, frame, width = rows_of_clips(lengths, 0, rows, time, features, BLOCK_M)
    columns = tl.arange(0, WIDTH)
    at = x + (clip * x_clip_stride + frame * x_stride) + columns[None, :]
    residual = tl.load(at, mask=columns[None, :] < width, other=0.0).to(tl.float32)
    valid = tl.reshape(width > 0, [BLOCK_M])
    out = tl.reshape(row, [BLOCK_M])
    split = tl.program_id(1)
    first = split * per_split
    last = tl.minimum(first + per_split, count)
    lanes = tl.arange(0, LANES)[None, :]
    for stage in range(stages):
        offset = tl.cast(stage, tl.int64) * padded
        book = codes + tl.cast(stage, tl.int64) * count * features
        if FILTER:
            low_part = low
            if low is not None:
                low_part = low + offset * WIDTH
            best, second, tiles, norm, usable = _propose(
                residual, centres + stage * WIDTH, high + offset * WIDTH, low_part, half_norms + offset, norms + offset,
                scales + offset, first // BLOCK_N, tl.cdiv(last, BLOCK_N), unit, features,
                EXACT, BLOCK_M, BLOCK_N, LANES, WIDTH,
            )  # fmt: skip
            if not CHAIN:  # read again: registers are scarce in between
                residual = tl.load(at, mask=columns[None, :] < width, other=0.0).to(tl.float32)
            least = tl.min(best, 1)
            if EXACT:
                ceiling = _ceiling(
                    best, tiles, norm, half_norms + offset, norms + offset, unit, features, BLOCK_N, LANES
                )
            else:  # the first lane of the least bound, and nothing besides
                lane = tl.min(tl.where(best == least[:, None], lanes, LANES), 1)
                best = tl.where(lanes == lane[:, None], best, INFINITY)
                second = tl.full([BLOCK_M, LANES], INFINITY, tl.float32)
                ceiling = least
            decidable = usable & (ceiling < INFINITY) & (least > -INFINITY)
        else:
            best = tl.full([BLOCK_M, LANES], INFINITY, tl.float32)
            second = best
            tiles = tl.zeros([BLOCK_M, LANES], tl.int32)
            ceiling = tl.full([BLOCK_M], INFINITY, tl.float32)
            decidable = ceiling < 0.0
        distance, index = _decide(
            residual, valid, book, best, second, tiles, ceiling, decidable, first, last, features,
            BLOCK_M, BLOCK_N, LANES, CODES, WIDTH,
        )  # fmt: skip
        lost = valid & (index < 0)  # nothing is at a finite distance
        if tl.max(lost.to(tl.int32), 0) > 0:
            zero = tl.zeros([BLOCK_M], tl.int32)
            distance = tl.where(lost, _distances_to(residual, book, zero, lost, features, WIDTH), distance)
        index = tl.where(valid, tl.maximum(index, 0), -1)
        place = (tl.cast(split, tl.int64) * rows + out) * stages + stage
        tl.store(indices + place, index.to(tl.int64), mask=out < rows)
        if distances is not None:
            distance = tl.where(valid, distance, 0.0)
            tl.store(distances + tl.cast(split, tl.int64) * rows + out, distance, mask=out < rows)
        if CHAIN:
            inside = valid[:, None] & (columns[None, :] < features)
            chosen = book + tl.maximum(index, 0).to(tl.int64)[:, None] * features + columns[None, :]
            residual -= tl.load(chosen, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def join_splits_kernel(part_indices, part_distances, indices, distances, rows, splits, BLOCK: tl.constexpr):
    """The nearest of what the splits found, [splits, rows]; grid (blocks of ``rows``)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    best = tl.load(part_distances + row, mask=inside, other=0.0)
    index = tl.load(part_indices + row, mask=inside, other=0)
    for split in range(1, splits):
        at = tl.cast(split, tl.int64) * rows + row
        distance = tl.load(part_distances + at, mask=inside, other=0.0)
        k = tl.load(part_indices + at, mask=inside, other=0)
        # Where a split found nothing finite it names code 0, which may be a NaN away.
        wins = (distance < best) | ((distance == best) & (k < index)) | ((best != best) & (distance < INFINITY))
        best = tl.where(wins, distance, best)
        index = tl.where(wins, k, index)
    tl.store(indices + row, index, mask=inside)
    tl.store(distances + row, best, mask=inside)
