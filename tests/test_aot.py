"""Steps compile for TPU topologies without a TPU, and the figures read off them are right."""

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest

from jaxdefense.bench.aot import CHIPS, RUNS
from jaxdefense.bench.hlo import Program, num_bytes
from jaxdefense.cli import main
from jaxdefense.clip.presets import PRESETS
from jaxdefense.config import AotConfig
from jaxdefense.settings import as_flags, parse
from jaxdefense.sharding import ShardingRules, batch_sharding, make_mesh, replicated

_HLO = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (part: bf16[64]) -> bf16[8] {
  %part = bf16[64]{0:T(1024)} parameter(0)
  %zero = s32[] constant(0)
  %reduced = bf16[64]{0} all-reduce(%part), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %kept = bf16[8]{0} dynamic-slice(%reduced, %zero), dynamic_slice_sizes={8}
}

%beside.1 (piece: f32[16]) -> f32[32] {
  %piece = f32[16]{0} parameter(0)
  ROOT %whole = f32[32]{0} all-gather(%piece), channel_id=7, replica_groups=[4,2]<=[8], dimensions={0}, frontend_attributes={chain_id="3"}
}

%beside.2 (piece.2: f32[16]) -> f32[32] {
  %piece.2 = f32[16]{0} parameter(0)
  ROOT %whole.2 = f32[32]{0} all-gather(%piece.2), channel_id=7, replica_groups=[4,2]<=[8], dimensions={0}, frontend_attributes={chain_id="3"}
}

%one_row (table: f32[100,16], at: s32[]) -> f32[16] {
  %table = f32[100,16]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %none = s32[] constant(0)
  %row = f32[1,16]{1,0} dynamic-slice(%table, %at, %none), dynamic_slice_sizes={1,16}
  ROOT %flat = f32[16]{0} bitcast(%row)
}

%row_in_row (table.2: f32[100,16], at.2: s32[]) -> f32[16] {
  %table.2 = f32[100,16]{1,0} parameter(0)
  %at.2 = s32[] parameter(1)
  ROOT %inside = f32[16]{0} fusion(%table.2, %at.2), kind=kLoop, calls=%one_row
}

%inner_condition (i.state: (s32[], f32[16])) -> pred[] {
  %i.state = (s32[]{:T(128)}, f32[16]{0}) parameter(0)
  %i.i = s32[] get-tuple-element(%i.state), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i.i, %three), direction=LT
}

%inner_body (i.in: (s32[], f32[16])) -> (s32[], f32[16]) {
  %i.in = (s32[], f32[16]{0}) parameter(0)
  %i.x = f32[16]{0} get-tuple-element(%i.in), index=1
  %i.n = s32[] get-tuple-element(%i.in), index=0
  %i.sum = f32[16]{0} all-reduce(%i.x), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add
  ROOT %i.out = (s32[], f32[16]{0}) tuple(%i.n, %i.sum)
}

%outer_condition (o.state: (s32[], f32[16])) -> pred[] {
  %o.state = (s32[], f32[16]{0}) parameter(0)
  ROOT %o.go = pred[] custom-call(%o.state), custom_call_target="go"
}

%outer_body (o.in: (s32[], f32[16])) -> (s32[], f32[16]) {
  %o.in = (s32[], f32[16]{0}) parameter(0)
  ROOT %o.loop = (s32[], f32[16]{0}) while(%o.in), condition=%inner_condition, body=%inner_body
}

%ring_condition (r.state: (f32[16], u32[])) -> pred[] {
  %r.state = (f32[16]{0}, u32[]{:T(128)}) parameter(0)
  %eight = u32[]{:T(128)} constant(8)
  %r.i = u32[]{:T(128)} get-tuple-element(%r.state), index=1
  ROOT %r.less = pred[] compare(%r.i, %eight), direction=LT
}

%ring_body (r.in: (f32[16], u32[])) -> (f32[16], u32[]) {
  %r.in = (f32[16]{0}, u32[]{:T(128)}) parameter(0)
  %two = u32[]{:T(128)} constant(2)
  %r.x = f32[16]{0} get-tuple-element(%r.in), index=0
  %r.n = u32[]{:T(128)} get-tuple-element(%r.in), index=1
  %r.next = u32[]{:T(128)} add(%r.n, %two)
  %r.sent = f32[16]{0} collective-permute(%r.x), channel_id=11, source_target_pairs={{0,1},{1,0}}
  ROOT %r.out = (f32[16]{0}, u32[]{:T(128)}) tuple(%r.sent, %r.next)
}

ENTRY %main (x: f32[16], t: f32[100,16], h: bf16[64]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %t = f32[100,16]{1,0} parameter(1)
  %h = bf16[64]{0:T(1024)} parameter(2)
  %c = s32[] constant(0)
  %start = (s32[], f32[16]{0}) tuple(%c, %x)
  %loop = (s32[], f32[16]{0}) while(%start), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}
  %unknown = (s32[], f32[16]{0}) while(%start), condition=%outer_condition, body=%inner_body
  %first = u32[] constant(0)
  %held = (f32[16]{0}, u32[]) tuple(%x, %first)
  %ring = (f32[16]{0}, u32[]{:T(128)}) while(%held), condition=%ring_condition, body=%ring_body
  %mine = bf16[8]{0} fusion(%h), kind=kCustom, calls=%all-reduce-scatter.1
  %b1 = f32[32]{0} fusion(%x), kind=kLoop, calls=%beside.1
  %b2 = f32[32]{0} fusion(%x), kind=kLoop, calls=%beside.2
  %picked = f32[16]{0} fusion(%t, %c), kind=kLoop, calls=%one_row
  %picked.2 = f32[16]{0} fusion(%t, %c), kind=kOutput, calls=%row_in_row
  %room = f32[100,16]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %sent = (f32[16]{0}, f32[16]{0}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=9, source_target_pairs={{0,1},{1,0}}
  ROOT %got = f32[16]{0} collective-permute-done(%sent)
}
"""  # noqa: E501


def test_collectives_count_loops_and_pieces_of_one_once():
    program = Program(_HLO)
    found = program.collectives()
    assert {kind: x.count for kind, x in found.items()} == {
        "all-reduce": 5 * 3 + 1,
        "reduce-scatter": 1,
        "all-gather": 1,
        "collective-permute": 1 + 4,
    }
    assert {kind: x.bytes for kind, x in found.items()} == {
        "all-reduce": 16 * 64,
        "reduce-scatter": 128,
        "all-gather": 128,
        "collective-permute": 5 * 64,
    }
    assert {kind: x.wire_bytes for kind, x in found.items()} == {
        "all-reduce": 16 * 64 * 2 * 3 / 4,
        "reduce-scatter": 128 * 7 / 8,
        "all-gather": 64,
        "collective-permute": 5 * 64,
    }
    assert program.unknown_loops == {"unknown"}


def test_memory_counts_slices_not_the_arrays_they_are_of():
    text = _HLO.replace("f32[100,16]", "f32[1000000,16]")
    assert Program(text).memory_bytes() == Program(_HLO).memory_bytes()
    reads_all = _HLO.replace("f32[1,16]{1,0} dynamic-slice(", "f32[1,16]{1,0} something(")
    assert Program(reads_all).memory_bytes() == Program(_HLO).memory_bytes() + 2 * 99 * 64


@pytest.mark.parametrize(
    "text, size",
    [
        ("f32[2,3]{1,0:T(8,128)}", 24),
        ("(bf16[4]{0}, s32[])", 12),
        ("pred[7]", 7),
        ("s4[5]", 3),
        ("f8e4m3fn[6]", 6),
        ("token[]", 0),
    ],
)
def test_num_bytes(text, size):
    assert num_bytes(text) == size


def test_num_bytes_leaves_out_what_is_on_chip():
    assert num_bytes("(f32[2]{0:T(128)S(1)}, f32[3]{0:T(128)})", hbm=True) == 12


def test_program_refuses_what_is_none():
    with pytest.raises(ValueError, match="ENTRY"):
        Program("nothing")


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_collectives_of_a_compiled_function():
    num = jax.device_count()
    mesh = make_mesh()
    rows, whole = batch_sharding(mesh, ShardingRules()), replicated(mesh)

    @partial(jax.jit, in_shardings=(rows, whole), out_shardings=(whole, whole))
    def function(x, w):
        def one(w, _):
            return w + (x @ w).sum(0), None  # summed over devices, each time

        return jax.lax.scan(one, w, length=6)[0], x

    x, w = jnp.zeros((2 * num, 16)), jnp.zeros((16, 16))
    text = function.lower(x, w).compile().as_text()
    assert text
    found = Program(text).collectives()
    assert set(found) == {"all-reduce", "all-gather"}
    assert found["all-reduce"].count == 6 and found["all-reduce"].bytes == 6 * 16 * 4
    assert found["all-gather"].bytes == 2 * num * 16 * 4
    assert found["all-gather"].wire_bytes == 2 * (num - 1) * 16 * 4


def test_runs_are_of_all_sizes_up_to_256_chips():
    for name, run in RUNS.items():
        cfg = parse(AotConfig, as_flags(run))
        assert name == f"{cfg.arch}/{cfg.tower}/{cfg.topology}"
        assert cfg.arch in PRESETS and cfg.topology.partition(":")[0] in CHIPS
    largest = {(run["arch"], run["tower"]) for run in RUNS.values() if "16x16" in run["topology"]}
    archs = "ViT-B-32", "ViT-L-14", "ViT-bigG-14"
    assert largest == {(arch, tower) for arch in archs for tower in ("text", "image")}


_DEMO = ["--arch", "demo", "--tower", "text", "--topology", "v5e:2x2"]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--arch", "ViT-Z-99"], "ViT-bigG-14"),
        (["--topology", "v5e"], "v5e:16x16"),
        (["--topology", "v99:2x2"], "v6e"),
        (["--tower", "speech"], "'text', 'image'"),
        (["--batch", "0"], "above 0"),
        (["--remat", "some"], "'dots'"),
        (["--mesh.rows", "2"], "unknown: --mesh.rows"),
        (["--set", "caption_tokens=1"], "at least 3"),
        (["--preset", "ViT-B-32/text/v5e:1024x1024"], "ViT-B-32/text/v5e:2x2"),
    ],
)
def test_bench_aot_refuses(capsys, flags, said):
    assert main(["bench", "aot", *_DEMO, *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


def test_bench_aot_says_that_libtpu_is_missing(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", "aot", *_DEMO]) == 2
    err = capsys.readouterr().err
    assert "libtpu" in err and "pip install" in err and len(err.splitlines()) == 1


needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu")


def bench_aot(*flags):
    """Run the command in a process of its own: libtpu writes to stderr, and stays loaded."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxdefense.cli", "bench", "aot", *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@needs_libtpu
@pytest.mark.parametrize("flags", [["--topology", "v5e:3x5"], ["--mesh", "data=3"]])
def test_bench_aot_refuses_what_the_compiler_does_not_know(flags):
    code, _, err = bench_aot(*_DEMO, *flags)
    assert code == 2 and flags[1] in err, err
    assert "Traceback" not in err


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("tower", ["text", "image"])
def test_bench_aot_compiles_the_step_for_a_tpu(tower):
    code, out, err = bench_aot(*_DEMO, "--tower", tower, "--batch", "64", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["chips"] == 4 and found["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert set(found["collectives"]) == {"all-reduce"}, "data alone sums, and does nothing else"
    sums = found["collectives"]["all-reduce"]
    assert all(value > 0 for value in sums.values())
    # Of the gradients at least, a ring of four sends 2 * 3 / 4.
    assert sums["wire_bytes"] == pytest.approx(1.5 * sums["bytes"])
    for key in ("arguments", "outputs", "total", "hbm", "part_of_hbm"):
        assert found["memory"][key] > 0
    assert found["memory"]["part_of_hbm"] < 0.1
    assert found["flops"]["products"] > 0 and found["bytes"]["accessed"] > 0
    roofline = found["roofline"]
    limits = {name: roofline[f"{name}_seconds"] for name in ("compute", "memory", "network")}
    assert roofline["seconds"] == max(limits.values()) == limits[roofline["bound"]] > 0
    assert roofline["samples_per_second"] == pytest.approx(128 / roofline["seconds"])
    assert not found["loops_counted_once"]
