# SPDX-License-Identifier: Apache-2.0
"""The entropy gate in Triton: short rows several to a program, long ones online.

Up to `WARP_CLASSES` classes a program holds whole rows in registers; beyond, it walks along
a row with a running maximum. Where the rows are too few for the device, programs share a
row, and a second kernel merges what they found.
"""

import triton
import triton.language as tl
from kernel_rivals import ONLINE_BLOCK, WARP_CLASSES


@triton.jit
def short_rows(z, exits, labels, scores, rows, classes, threshold, R: tl.constexpr,
               C: tl.constexpr):  # fmt: skip
    """R rows of at most C classes: [R, C] in registers."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    c = tl.arange(0, C)
    mask = (row[:, None] < rows) & (c[None, :] < classes)
    x = tl.load(z + row[:, None] * classes + c[None, :], mask, other=-float("inf"))
    x = x.to(tl.float32)
    m, label = tl.max(x, 1, return_indices=True)
    d = x - m[:, None]
    e = tl.exp(d)
    s = tl.sum(e, 1)
    w = tl.sum(tl.where(e > 0, e * d, 0.0), 1)
    score = tl.log(s) - w / s
    keep = row < rows
    tl.store(exits + row, score < threshold, keep)
    tl.store(labels + row, label.to(tl.int64), keep)
    tl.store(scores + row, score, keep)


@triton.jit
def walk(row_of, begin, end, C: tl.constexpr):
    """Maximum, its class, Σ e^d and Σ e^d·d of the classes [begin, end) of a row."""
    m = -float("inf")
    s, w = 0.0, 0.0
    label = begin
    for start in range(begin, end, C):
        c = start + tl.arange(0, C)
        x = tl.load(row_of + c, c < end, other=-float("inf")).to(tl.float32)
        top, at = tl.max(x, 0, return_indices=True)
        new = tl.maximum(m, top)
        down = tl.where(m > -float("inf"), m - new, 0.0)
        scale = tl.where(m > -float("inf"), tl.exp(down), 0.0)
        d = x - new
        e = tl.exp(d)
        w = scale * (w + down * s) + tl.sum(tl.where(e > 0, e * d, 0.0), 0)
        s = scale * s + tl.sum(e, 0)
        label = tl.where(top > m, start + at, label)
        m = new
    return m, label, s, w


@triton.jit
def long_rows(z, exits, labels, scores, rows, classes, threshold, C: tl.constexpr):
    """Persistent: program p takes the rows p, p + programs, ... ."""
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        m, label, s, w = walk(z + tl.cast(row, tl.int64) * classes, 0, classes, C)
        score = tl.log(s) - w / s
        tl.store(exits + row, score < threshold)
        tl.store(labels + row, label.to(tl.int64))
        tl.store(scores + row, score)


@triton.jit
def row_parts(z, found, at, classes, parts, length, C: tl.constexpr):
    """Program (row, part) leaves what it found of its part of the row."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = part * length
    end = tl.minimum(begin + length, classes)
    m, label, s, w = walk(z + row * classes, begin, end, C)
    slot = row * parts + part
    tl.store(found + slot * 3, m)
    tl.store(found + slot * 3 + 1, s)
    tl.store(found + slot * 3 + 2, w)
    tl.store(at + slot, label)


@triton.jit
def merge_parts(found, at, exits, labels, scores, parts, threshold, P: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, P)
    keep = p < parts
    slot = row * parts + p
    m = tl.load(found + slot * 3, keep, other=-float("inf"))
    s = tl.load(found + slot * 3 + 1, keep, other=0.0)
    w = tl.load(found + slot * 3 + 2, keep, other=0.0)
    label = tl.load(at + slot, keep, other=0)
    top = tl.max(m, 0)
    d = tl.where(keep, m - top, 0.0)
    e = tl.where(keep, tl.exp(d), 0.0)
    total = tl.sum(e * s, 0)
    weighted = tl.sum(e * (w + d * s), 0)
    first = tl.min(tl.where(keep & (m == top), label, 2147483647), 0)
    score = tl.log(total) - weighted / total
    tl.store(exits + row, score < threshold)
    tl.store(labels + row, first.to(tl.int64))
    tl.store(scores + row, score)


def candidates(torch, threshold):
    """Several block sizes and warps; the fastest that is right stands for Triton."""
    processors = 4  # in Triton's interpreter, on the CPU
    if torch.cuda.is_available():
        processors = torch.cuda.get_device_properties(0).multi_processor_count

    def outputs(z):
        kinds = (torch.bool, torch.int64, torch.float32)
        return [torch.empty(len(z), dtype=kind, device=z.device) for kind in kinds]

    def in_registers(elements, warps):
        def run(z):
            rows, classes = z.shape
            width = triton.next_power_of_2(classes)
            each = max(1, elements // width)
            exits, labels, scores = outputs(z)
            grid = (triton.cdiv(rows, each),)
            short_rows[grid](
                *[z, exits, labels, scores, rows, classes, threshold, each, width],
                num_warps=warps,
            )
            return exits, labels, scores

        run.__name__ = f"registers_{elements}_{warps}"
        return run

    def online(block, warps, programs):
        def run(z):
            rows, classes = z.shape
            exits, labels, scores = outputs(z)
            if rows < processors and classes > 2 * block:
                return shared(z, exits, labels, scores, block, warps)
            grid = (min(rows, programs * processors),)
            long_rows[grid](
                *[z, exits, labels, scores, rows, classes, threshold, block],
                num_warps=warps,
            )
            return exits, labels, scores

        run.__name__ = f"online_{block}_{warps}_{programs}"
        return run

    def shared(z, exits, labels, scores, block, warps):
        rows, classes = z.shape
        parts = min(2 * processors // rows, classes // block)
        length = triton.cdiv(triton.cdiv(classes, parts), block) * block
        parts = triton.cdiv(classes, length)
        found = torch.empty(rows * parts * 3, dtype=torch.float32, device=z.device)
        at = torch.empty(rows * parts, dtype=torch.int32, device=z.device)
        row_parts[(rows, parts)](
            z, found, at, classes, parts, length, block, num_warps=warps
        )
        merge_parts[(rows,)](
            *[found, at, exits, labels, scores, parts, threshold],
            triton.next_power_of_2(parts),
        )
        return exits, labels, scores

    def fitting(z):
        if z.shape[1] <= WARP_CLASSES:
            return [in_registers(n, w) for n, w in ((1024, 2), (2048, 4), (4096, 8))]
        blocks = ((2048, 4), (ONLINE_BLOCK, 8), (2 * ONLINE_BLOCK, 16))
        return [online(b, w, p) for b, w in blocks for p in (2, 4)]

    return fitting
