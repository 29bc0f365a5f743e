"""The figures that benchmarks/tpu_static.py makes of a dump of libtpu's, and of the estimates of small grids."""

import importlib
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:  # Bazel runs a link to this file: the checkout is where the link leads
    patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    tpu_static = importlib.import_module("tpu_static")
    tpu_profile, tpu_chips = importlib.import_module("tpu_profile"), importlib.import_module("tpu_chips")

# Of libtpu 0.0.42.1 for v6e, a product whose inner loop adds up slices, cut down to 14 of its 317 bundles.
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
    with pytest.raises(ValueError, match="13 bundles"):
        tpu_profile.main_loops(dump)


def test_cycles_are_of_all_operations(dump, tmp_path_factory):
    assert tpu_profile.estimated_cycles(dump) == 8000 + 3 * 2019
    with pytest.raises(ValueError, match="no estimate"):
        tpu_profile.estimated_cycles(tmp_path_factory.mktemp("empty"))


def bilinear(rows, columns):
    return 3000 + 700 * rows + 40 * columns + 3300 * rows * columns


SMALL = {grid: bilinear(*grid) for grid in tpu_static.GRIDS}


def test_four_small_grids_give_the_whole():
    assert tpu_static.whole(SMALL, 8, 297) == pytest.approx(bilinear(8, 297))
    for grid in SMALL:  # each of them counts
        assert tpu_static.whole({**SMALL, grid: SMALL[grid] + 1}, 8, 297) != pytest.approx(bilinear(8, 297), abs=0.5)


@pytest.mark.parametrize(("bandwidth", "limit"), [(1e15, "cycles"), (1e9, "bytes")])
def test_the_longer_of_cycles_and_bytes_counts(bandwidth, limit):
    chip = tpu_chips.CHIPS["v5e"]._replace(bandwidth=bandwidth)
    program = tpu_static.Program(None, 1, lambda tile, n, d, v: 7.0 * n * v)
    found = tpu_static.estimate(program, chip, (8, 128), (60, 32, 1000), SMALL, [LOOP])  # 8 by 8 tiles
    seconds = {"cycles": bilinear(8, 8) / 1.503e9, "bytes": 7 * 64 * 1024 / bandwidth}
    assert (found.limit, found.loops) == (limit, [LOOP])
    assert found.seconds == pytest.approx(seconds[limit], rel=1e-3)
    assert found.cycles == pytest.approx(bilinear(8, 8) / 64)
    assert found.share == pytest.approx(2 * 60 * 32 * 1000 / 197e12 / seconds[limit], rel=1e-3)


def test_the_backward_pass_reads_the_hidden_states_once_for_each_tile_of_the_vocabulary():
    tile, n, d, v = (4, 8), 16, 2, 64
    forward = 2 * (n * d + 4 * v * d)
    assert tpu_static.PROGRAMS["forward"].traffic(tile, n, d, v) == forward
    backward = 2 * forward + 2 * (n * d + 8 * n * d + 2 * v * d)
    assert tpu_static.PROGRAMS["forward+backward"].traffic(tile, n, d, v) == backward


def test_a_search_prints_every_tile_and_gives_the_best(capsys):
    def profile(name, chip, tile, d, grid):
        if tile == (16, 128):
            raise tpu_static.RefusedError("scoped vmem")
        return bilinear(*grid), [LOOP]

    chip, tiles = tpu_chips.CHIPS["v6e"], [(16, 128), (8, 128), (4, 128)]
    assert tpu_static.search("forward", chip, tiles, (64, 8, 1024), profile) == (8, 128)
    refused, first, second = capsys.readouterr().out.splitlines()
    assert "refused: scoped vmem" in refused
    assert "| forward | v6e | 8x128 |" in first
    assert "| 43 | 11 |" in first
    assert "| 4x128 |" in second
    assert len({line.count("|") for line in (refused, first, second)}) == 1
    assert tpu_static.search("forward", chip, tiles[:1], (64, 8, 1024), profile) is None


def test_the_clocks_are_those_of_the_matrix_units():
    clocks = [round(chip.clock / 1e9, 2) for chip in tpu_chips.CHIPS.values()]
    assert clocks == [1.5, 1.75, 1.75, 2.2]
