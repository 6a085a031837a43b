"""Seeds that belong to an item, not to a position in a loop."""

from __future__ import annotations

import hashlib


def item_seed(run_seed: int, item_id: str) -> int:
    """A 63-bit seed from the run's seed and an item's identity (BLAKE2b of both).

    Neither the order of the items nor the number of processes enters, so that a resumed or distributed run draws the
    same noise for the same item. 63 bits fit the signed integers of JSON readers and `torch.Generator.manual_seed`.
    """
    digest = hashlib.blake2b(f"{run_seed}:{item_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
