"""Reads libtpu's dumps of compiled programs: estimated cycles, and the utilization of the main loop's bundles.

The flags are undocumented and the format may change; unexpected contents raise ValueError. A bundle is the set of
instructions that a TensorCore issues in one cycle, one per slot. Only the estimated cycles include stalls.
"""

import re
from pathlib import Path
from typing import NamedTuple


def flags(folder: Path) -> str:
    """LIBTPU_INIT_ARGS that dump the programs of a process to `folder`, each after its last compiler pass."""
    dump, profile = f"--xla_jf_dump_to={folder}", f"--xla_jf_dump_static_llo_profile_to={folder}"
    return f"{dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final.* {profile}"


class Loop(NamedTuple):
    """The loop with most of a kernel's matrix products, excluding loops inside it."""

    bundles: int
    mxu: float  # share of the matrix unit slots that are used
    spills: int  # register spills and fills per iteration


def estimated_cycles(folder: Path, kernel: str) -> int:
    """Estimated cycles, on one TensorCore and over all grid steps, of the kernel whose name begins with `kernel`."""
    found = [path.read_text(encoding="utf-8") for path in folder.glob(f"{kernel}*_static_llo_profile.textproto")]
    if len(found) != 1:
        raise ValueError(f"{folder} has {len(found)} estimates of cycles for {kernel}*: expected one")
    return int(re.findall(r"estimated_cycles: (\d+)", found[0])[0])


def main_loops(folder: Path) -> list[Loop]:
    """The main loop of each kernel with matrix products, in order of compilation."""
    loops = []
    for path in sorted(folder.glob("*-final_hlo-static-per-bundle-utilization.txt")):
        (bundles,) = folder.glob(f"{path.name.rsplit('-', 6)[0]}-??-final_bundles.txt")
        capacity, rows = utilization(path.read_text(encoding="utf-8"))
        owners = innermost_loops(bundles.read_text(encoding="utf-8"))
        if len(owners) != len(rows):
            raise ValueError(f"{bundles.name} has {len(owners)} bundles: expected {len(rows)}, as {path.name}")
        if loop := main_loop(capacity, rows, owners):
            loops.append(loop)
    return loops


def utilization(text: str) -> tuple[dict[str, int], list[dict[str, int]]]:
    """(slots per bundle by kind, used slots by kind for each bundle)."""
    _, names, capacity, _, *rows = text.splitlines()
    kinds = names.split(", ")
    read = [dict(zip(kinds, map(int, line.split()), strict=True)) for line in (capacity, *rows) if line]
    return read[0], read[1:]


def innermost_loops(text: str) -> list[int | None]:
    """For each bundle, the index of the first bundle of its innermost loop; None outside of all loops.

    A line is `address LB: >> { ... }`: LB marks the start of a loop, and the number of > is the loop depth. Bundles may
    be moved across loop boundaries, so a loop ends where another loop of the same or a smaller depth begins.
    """
    owners, open_loops = [], {}
    for mark, depth in re.findall(r"^ *(?:0x[0-9a-f]+|0) +(\w\w)? *: *(>*) *\{", text, flags=re.M):
        if mark == "LB":
            open_loops = {level: start for level, start in open_loops.items() if level < len(depth)}
            open_loops[len(depth)] = len(owners)
        owners.append(open_loops.get(len(depth)))
    return owners


def main_loop(capacity: dict[str, int], rows: list[dict[str, int]], owners: list[int | None]) -> Loop | None:
    mxu: dict[int | None, int] = {}
    for row, owner in zip(rows, owners, strict=True):
        mxu[owner] = mxu.get(owner, 0) + row["MXU"]
    main = max(mxu, key=lambda owner: mxu[owner], default=None)
    if not mxu.get(main):
        return None
    own = [row for row, owner in zip(rows, owners, strict=True) if owner == main]
    spills = sum(row["VLOAD:FILL"] + row["VSTORE:SPILL"] for row in own)
    return Loop(len(own), mxu[main] / (capacity["MXU"] * len(own)), spills)
