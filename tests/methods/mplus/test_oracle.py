"""Writing and reading against the equations, row by row, over a dozen writes."""

from __future__ import annotations

import torch

from remanence.methods.mplus.method import MPlus
from remanence.methods.mplus.pool import Pool
from tests.methods.mplus.helpers import LORA, small, small_lm
from tests.reference import mplus as oracle

CHUNKS = [list(range(3, 3 + n)) for n in (9, 6, 24, 2, 13, 1, 6, 17, 5, 8, 24, 3)]


def lists(pool: Pool) -> oracle.Rows:
    return [list(rows.double().unbind()) for rows in pool.row_LNC]


def setting(method: MPlus, lm):
    modules = method.modules(lm)
    bos = [row.detach().double() for row in modules.bos_LC]
    return bos, modules.mark_C.detach().double()


def test_every_write_makes_the_rows_of_the_equations():
    lm = small_lm()
    method = small(lm)
    writer, (bos, mark) = oracle.RoleDecoder(lm.model, "write", LORA.scale), setting(method, lm)
    pool = method.fresh(lm)
    for ids in CHUNKS:
        theirs = oracle.write(writer, bos, mark, lists(pool), ids, method.config.write_rows)
        pool = method.add(lm, pool, ids)
        ours = pool.row_LNC[:, -method.config.write_rows :].double()
        assert torch.allclose(ours, torch.stack([torch.stack(rows) for rows in theirs]), atol=1e-4)


def test_a_batch_of_chunks_of_any_lengths_is_each_alone():
    lm = small_lm()
    method = small(lm)
    pool = method.fresh(lm)
    last_BLKC = pool.row_LNC[None, :, -method.config.write_rows :].repeat(len(CHUNKS), 1, 1, 1)
    last_BLKC = last_BLKC + 0.1 * torch.randn(last_BLKC.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = method.encode(lm, last_BLKC, CHUNKS)
        for b, ids in enumerate(CHUNKS):
            assert torch.allclose(together[b], method.encode(lm, last_BLKC[b : b + 1], [ids])[0], atol=1e-5)


def test_reading_gives_the_logits_of_the_equations():
    lm = small_lm()
    method = small(lm)
    reader, (bos, _) = oracle.RoleDecoder(lm.model, "read", LORA.scale), setting(method, lm)
    pool = method.fresh(lm)
    for ids in CHUNKS:
        pool = method.add(lm, pool, ids)
    modules, slots = method.modules(lm), method.config.long_slots
    long = []
    for layer in range(lm.dims.num_layers):
        blocks, alive = pool.long.blocks, pool.long.alive(layer).nonzero().squeeze(1)
        rows, keys = blocks.rows(layer, alive).double(), torch.cat(list(blocks.keys(layer)))[alive].double()
        long.append(list(zip(rows, keys, blocks.born(layer)[alive].tolist(), strict=True)))
        assert len(long[-1]) > slots
    maps = [[query[0].weight.detach().double(), query[2].weight.detach().double()] for query in modules.query]
    prompt = [5, 9, 70, 33, 12]
    theirs = torch.stack(oracle.read(reader, bos, maps, lists(pool), long, prompt, slots))
    with torch.no_grad():
        ours = lm.forward(torch.tensor([prompt]), method.prefix(lm, [pool]), role="read")[0]
    assert torch.allclose(ours.double(), theirs, atol=1e-4)
