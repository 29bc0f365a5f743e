"""benchmarks/tpu_static.py: figures from a dump of libtpu, and extrapolation from small grids."""

import importlib
from pathlib import Path

import pytest

from pallas_kernels._vocabulary.types import Tile

with pytest.MonkeyPatch.context() as patch:  # under Bazel this file is a symbolic link into the checkout
    patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    tpu_static = importlib.import_module("tpu_static")
    tpu_profile, tpu_chips = importlib.import_module("tpu_profile"), importlib.import_module("tpu_chips")

# Dump of libtpu 0.0.42.1 for v6e: a product whose inner loop sums slices, cut down to 14 of its 317 bundles.
BUNDLES = """= control target key start
LB: loop body
PF: predicated region fallthrough
= control target key end

     0   :  { %7 = vsyncpa [#allocation3], 0  ;;  %s4286_s0 = inlined_call_operand.hbm [shape: bf16[256,2048] }
   0x7 LB: > { %4299 = sst [smem:[#allocation11_spill]] %s2831_s14 }
  0x3c   : > { %s3248_s26 = scalar_lea.vmem [#allocation7], %s1581_s22 }
  0x65 LB: >> { %4321 = vst [vmem:[#allocation18_spill] sm:$0xff] }
  0x66   : >> { %4323 = vst [vmem:[#allocation20_spill] sm:$0xff] }
  0x69   : >> { %4329 = vst [vmem:[#allocation26_spill] sm:$0xff] }
  0xa1   : >> { %759 = vmatmul.mubr.bf16.gmra.mxu0 %v1591_v33 }
  0xa2   : >> { %768 = vmatprep.mubr.bf16.mxu0 %v1594_v10 }
  0xa3   :  {}
  0xa5   : >> { %769 = vmatmul.mubr.bf16.gmra.mxu0 %v1593_v35 }
  0xec   : >> { %v816_v56 = vpop.f32.mrf.mxu0 }
 0x109 LB: >> { %s1683_s4 = sshll.u32 %s3095_s3, 7 }
 0x110   : >> { %v1215_v13 = vmul.bf16 1073758208, %v1199_v46 }
 0x12f   : > { %p16_p5 = scmp.ge.s32.totalorder %s19_s17, 4 }
"""
UTILIZATION = """== CAPACTIY:
MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU
    2     2     4     2     1     3     3     2     2     2
== UTILIZATION:
0 0 0 0 0 1 0 0 0 0
0 0 0 0 0 0 0 0 0 2
0 0 0 0 0 0 0 0 0 1
0 0 0 0 0 0 0 2 2 2
0 0 0 0 0 0 0 2 2 2
0 0 0 0 0 2 2 2 2 2
2 0 1 0 0 0 0 0 0 0
2 0 1 0 0 1 0 0 0 0
0 0 0 0 0 0 0 0 0 0
2 0 3 0 0 0 0 0 0 0
0 0 3 2 0 3 3 0 0 0
0 0 0 0 0 0 0 0 0 2
0 0 3 0 0 3 0 0 0 0
0 0 0 0 0 0 0 0 0 2
"""
PROFILE = """hlo_op_estimate {
  hlo_op_name: "reduce"
  estimated_cycles: 2019
  num_equivalent_hlos: 3
  dma_instruction_type: DMA_INSTRUCTION_TYPE_LOCAL
}
"""
SUMS = tpu_static.KERNELS["sums"]
LOOP = tpu_profile.Loop(bundles=7, mxu=6 / 14, spills=11)


@pytest.fixture
def dump(tmp_path):
    names = {
        "17-mm.1-01-final_hlo-static-per-bundle-utilization.txt": UTILIZATION,
        "17-mm.1-02-schedule-analysis_final_bundles.txt": "Schedule analysis:\n",
        "17-mm.1-03-final_bundles.txt": BUNDLES,
        "reduce_static_llo_profile.textproto": PROFILE,
        "mm.1_static_llo_profile.textproto": PROFILE.replace("2019", "8000").replace("hlos: 3", "hlos: 1"),
    }
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_loop_with_the_products_is_found_and_counted(dump):
    assert tpu_profile.main_loops(dump) == [LOOP]


def test_bundles_belong_to_their_innermost_loop():
    assert tpu_profile.innermost_loops(BUNDLES) == [None, 1, 1, 3, 3, 3, 3, 3, None, 3, 3, 11, 11, 1]


def test_without_the_marks_of_loops_the_figures_are_others(dump):
    path = dump / "17-mm.1-03-final_bundles.txt"
    path.write_text(BUNDLES.replace("0x109 LB", "0x109   "))
    assert tpu_profile.main_loops(dump) != [LOOP]


def test_a_program_without_products_has_no_main_loop(dump):
    path = dump / "17-mm.1-01-final_hlo-static-per-bundle-utilization.txt"
    path.write_text(UTILIZATION.replace("\n2 0", "\n0 0"))
    assert tpu_profile.main_loops(dump) == []


def test_a_bundle_that_is_not_understood_is_an_error(dump):
    path = dump / "17-mm.1-03-final_bundles.txt"
    path.write_text(BUNDLES.replace("  0x66   : >> {", "  0x66"))
    with pytest.raises(ValueError, match="has 13 bundles: expected 14"):
        tpu_profile.main_loops(dump)


def test_cycles_are_those_of_the_kernel(dump):
    assert tpu_profile.estimated_cycles(dump, "mm") == 8000
    with pytest.raises(ValueError, match="has 0 estimates"):  # no other file may be used instead
        tpu_profile.estimated_cycles(dump, "other")


def bilinear(rows, columns):
    return 3000 + 700 * rows + 40 * columns + 3300 * rows * columns


SMALL = {grid: bilinear(*grid) for grid in tpu_static.grids(SUMS, tpu_chips.CHIPS["v5e"])}


def test_four_small_grids_give_the_whole():
    assert tpu_static.whole(SMALL, 8, 297) == pytest.approx(bilinear(8, 297))
    for grid in SMALL:
        assert tpu_static.whole({**SMALL, grid: SMALL[grid] + 1}, 8, 297) != pytest.approx(bilinear(8, 297), abs=0.5)


def test_the_cores_of_a_chip_share_the_outer_tiles():
    v5e, v5p = (tpu_chips.CHIPS[name] for name in ("v5e", "v5p"))
    weight = tpu_static.KERNELS["weight"]
    assert tpu_static.grids(SUMS, v5e) == [(1, 2), (1, 3), (2, 2), (2, 3)]
    assert tpu_static.grids(SUMS, v5p) == [(2, 2), (2, 3), (4, 2), (4, 3)]
    assert tpu_static.grids(weight, v5p) == [(2, 2), (2, 4), (3, 2), (3, 4)]


@pytest.mark.parametrize(("bandwidth", "limit"), [(1e15, "cycles"), (1e9, "bytes")])
def test_the_longer_of_cycles_and_bytes_counts(bandwidth, limit):
    chip = tpu_chips.CHIPS["v5e"]._replace(bandwidth=bandwidth)
    found = tpu_static.estimate(SUMS, chip, Tile(8, 128), (60, 32, 1000), SMALL, LOOP)  # 8 by 8 tiles
    traffic = 2 * 32 * (64 + 8 * 1024)  # the weight is read once per tile of tokens
    seconds = {"cycles": bilinear(8, 8) / 1.503e9, "bytes": traffic / bandwidth}
    assert (found.limit, found.loop) == (limit, LOOP)
    assert found.seconds == pytest.approx(seconds[limit], rel=1e-3)
    assert found.cycles == pytest.approx(bilinear(8, 8) / 64)
    assert found.share == pytest.approx(2 * 60 * 32 * 1000 / 197e12 / seconds[limit], rel=1e-3)


def test_each_kernel_reads_its_operands_once_or_once_per_tile():
    tile, n, d, v = Tile(4, 8), 16, 2, 64
    hidden, weight = 2 * n * d, 2 * v * d
    found = {name: kernel.traffic(tile, n, d, v) for name, kernel in tpu_static.KERNELS.items()}
    assert found == {
        "sums": hidden + 4 * weight,
        "hidden": 2 * hidden + 4 * weight,
        "weight": 2 * weight + 8 * hidden,
    }


def test_a_search_prints_every_tile_and_gives_the_best(capsys):
    def profile(name, chip, tile, d, grid):
        if tile == (16, 128):
            raise tpu_static.RefusedError("scoped vmem")
        return bilinear(*grid), LOOP

    chip, tiles = tpu_chips.CHIPS["v6e"], [Tile(16, 128), Tile(8, 128), Tile(4, 128)]
    seconds = tpu_static.search("sums", chip, tiles, (64, 8, 1024), profile)
    assert seconds.keys() == set(tiles[1:])
    assert seconds[tiles[1]] < seconds[tiles[2]]
    refused, first, second = capsys.readouterr().out.splitlines()
    assert "rejected: scoped vmem" in refused
    assert "| sums | v6e | 8x128 |" in first
    assert "| 43 | 11 |" in first
    assert "| 4x128 |" in second
    assert len({line.count("|") for line in (refused, first, second)}) == 1
    assert tpu_static.search("sums", chip, tiles[:1], (64, 8, 1024), profile) == {}


def test_the_kernels_own_tiles_add_up():
    chip, size = tpu_chips.CHIPS["v5e"], (4096, 4096, 151936)
    floor = 2 * 4096 * 4096 * 151936 / 197e12
    assert tpu_static.floor(1, chip, size) == pytest.approx(floor)
    best = {name: (tpu_static.own_tile(name, chip), 2 * floor) for name in tpu_static.KERNELS}
    said = tpu_static.summary(chip, best, size)
    assert "forward 50.0 %" in said
    assert "with gradients 66.7 %" in said  # four products over three times two floors
    assert "gradients" not in tpu_static.summary(chip, {"sums": best["sums"]}, size)


def test_the_clocks_are_those_of_the_matrix_units():
    clocks = [round(chip.clock / 1e9, 2) for chip in tpu_chips.CHIPS.values()]
    assert clocks == [1.5, 1.75, 1.75, 2.2]
