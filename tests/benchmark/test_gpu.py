"""The suite for a GPU: what it keeps, what it skips, what it says. Its numbers come from a CPU here."""

import json
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from mtkd_jax.benchmark import __main__, agreement, gpu, gpu_parts, gpu_tables, members, parcels, tell, work
from mtkd_jax.benchmark.clock import LeftOut
from mtkd_jax.benchmark.gpu_store import Item, Skipped, Store, run_items
from mtkd_jax.types import UserError

SOON = 1e18  # long after every test


# --- parcels ----------------------------------------------------------------------------------------------


def drawn(size, *shape):
    return np.random.default_rng(size).integers(0, 256, (size, *shape), np.uint8)


def test_parcels_hold_the_arrays_bit_for_bit_and_none_is_larger_than_it_may_be(tmp_path, monkeypatch):
    arrays = {
        "train_images": drawn(40, 8, 8, 3),
        "train_labels": np.arange(40, dtype=np.int64),
        "test_images": drawn(6, 8, 8, 3),
        "class_names": np.array(["a", "bc"]),
    }
    np.savez(tmp_path / "set.npz", **arrays)
    monkeypatch.setattr(parcels, "STRIP", 64)
    packed = parcels.pack(tmp_path / "set.npz", tmp_path / "parts", parcel=6000)
    assert len(packed) > 1 and all(path.stat().st_size < 7500 for path in packed)
    with np.load(parcels.unpack(tmp_path / "parts", "set", tmp_path / "there"), allow_pickle=False) as found:
        assert set(found.files) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def test_a_parcel_that_is_missing_is_noticed(tmp_path):
    np.savez(tmp_path / "set.npz", train_images=drawn(4000, 8, 8, 3))
    packed = parcels.pack(tmp_path / "set.npz", tmp_path / "parts", parcel=400_000)
    packed[-1].unlink()
    with pytest.raises(UserError, match="rows of pixels of 32000: a parcel is missing"):
        parcels.unpack(tmp_path / "parts", "set", tmp_path / "there")
    with pytest.raises(UserError, match=r"neither other.npz nor other.part-1.zip"):
        parcels.unpack(tmp_path / "parts", "other", tmp_path)


# --- what is kept -----------------------------------------------------------------------------------------


def test_what_is_there_is_not_measured_again_and_what_failed_or_was_skipped_is(tmp_path, capsys):
    calls = []

    def item(name, least=0.0, then=None):
        def run(until):
            calls.append(name)
            if isinstance(then, Exception):
                raise then
            return {"value": 1}

        return Item(name, least, run)

    items = [
        item("a"),
        item("b", then=RuntimeError("broke")),
        item("c", least=1e20),
        item("d", then=Skipped("half")),
    ]
    run_items(items, Store(tmp_path, True), "members", time.time() + 1000)
    kept = Store(tmp_path, True).content["parts"]["members"]
    assert calls == ["a", "b", "d"] and list(kept["items"]) == ["a"] and not kept["done"]
    assert kept["skipped"]["b"] == "it failed: broke" and kept["skipped"]["d"] == "half"
    assert "s were left, and it takes 100000000000000000000" in kept["skipped"]["c"]
    run_items([item("a"), item("b")], Store(tmp_path, True), "members", SOON)
    kept = Store(tmp_path, True).content["parts"]["members"]
    assert calls == ["a", "b", "d", "b"] and kept["done"]
    for records in ([1, 2], [3]):  # as far as the time reached
        Store(tmp_path, True).put("members", "e", {"records": records, "whole": False})
    kept = Store(tmp_path, True)
    assert kept.content["parts"]["members"]["items"]["e"]["records"] == [1, 2] and not kept.has(
        "members", "e"
    )
    run_items([item("e")], kept, "members", SOON)
    assert calls[4:] == ["e"] and kept.has("members", "e")
    assert "broke" in capsys.readouterr().err


def test_results_of_a_dry_run_are_not_gone_on_with(tmp_path):
    Store(tmp_path, True).skip("numbers", "x", "no time")
    with pytest.raises(UserError, match="holds the results of --toy; name another folder"):
        Store(tmp_path, False)


def test_parts_share_the_minutes_and_those_that_are_done_have_none(tmp_path, monkeypatch):
    shared = {}

    def run_part(part, store, until, work, data):
        shared[part] = until - begun
        (work / "cache").mkdir(exist_ok=True)
        (work / "cache" / part).write_text(part)

    monkeypatch.setattr(gpu, "_run_part", run_part)
    Store(tmp_path, False).describe("members", done=True)
    begun = time.time()
    content = gpu.measure(gpu.PARTS, 10, tmp_path, tmp_path, toy=False)
    assert list(shared) == ["numbers", "cifar10", "published"]
    assert list(shared.values()) == pytest.approx([250, 500, 600], abs=5)
    assert content["parts"]["cifar10"]["taken_by_others"] is None or content["parts"]["cifar10"]
    with zipfile.ZipFile(tmp_path / "kept-1.zip") as archive:  # and it is there for the next day
        assert set(archive.namelist()) == {"cache/numbers", "cache/cifar10", "cache/published"}


def test_runs_are_kept_before_programs_and_the_newest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "KEPT", 100)
    monkeypatch.setattr(gpu, "MOST_KEPT", 2)
    for number, name in enumerate(("cache/old", "cache/new", "runs/one/state", "cache/huge")):
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (200 if name == "cache/huge" else 70))
        os.utime(path, (number, number))
    gpu.pack_kept(tmp_path / "work", tmp_path)
    held = [zipfile.ZipFile(path).namelist() for path in sorted(tmp_path.glob("kept-*.zip"))]
    assert held == [["runs/one/state"], ["cache/new"]]


def test_a_run_is_kept_whole_or_not_at_all_and_no_archive_of_before_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "KEPT", 100)
    monkeypatch.setattr(gpu, "MOST_KEPT", 2)
    sizes = {"runs/large/a": 70, "runs/large/b": 110, "runs/wide/a": 60, "runs/wide/b": 60, "runs/wide/c": 60}
    for number, (name, size) in enumerate({**sizes, "runs/small/a": 10, "cache/new": 20}.items()):
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (number, number))
    (tmp_path / "kept-2.zip").write_bytes(b"of before")
    gpu.pack_kept(tmp_path / "work", tmp_path)
    held = {path.name: zipfile.ZipFile(path).namelist() for path in tmp_path.glob("kept-*.zip")}
    assert held == {"kept-1.zip": ["runs/small/a", "cache/new"]}
    told = capsys.readouterr().err
    assert "the run large is too large to be kept" in told and "the run wide is too large" in told


def test_a_process_past_its_time_is_ended(monkeypatch):
    monkeypatch.setattr(gpu, "TO_SAVE", 1.0)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    ended = gpu._run_until([sys.executable, "-c", code], time.time(), {})
    assert not ended.in_time and ended.code == -9
    ended = gpu._run_until([sys.executable, "-c", "import sys; sys.exit('no such device')"], SOON / 1e9, {})
    assert ended.in_time and (ended.code, ended.last) == (1, "no such device")


# --- what is measured -------------------------------------------------------------------------------------


def test_numbers_are_compared_with_those_of_a_cpu(tmp_path, monkeypatch):
    ways = {name: agreement.WAYS[name] for name in ("vmap, highest", "vmap, bfloat16")}
    monkeypatch.setattr(agreement, "WAYS", ways)
    monkeypatch.setattr(
        agreement, "run_whole", lambda modes: {"losses": np.ones(3), "accuracies": np.ones(2)}
    )
    gpu_parts.write_reference(tmp_path, toy=True)
    compare, resume, run = gpu_parts.numbers(tmp_path, toy=True)
    found = compare.run(SOON)["differences"]
    for what in ("losses", "update"):
        assert (
            found[f"vmap, highest: {what}"]["value"] < 1e-5 < found[f"vmap, bfloat16: {what}"]["value"] < 0.1
        )
    assert run.run(SOON)["differences"]["vmap, as by default"]["value"] == 0
    assert resume.name == "a resume"
    monkeypatch.setattr(
        agreement, "run_whole", lambda modes: {"losses": np.ones(3), "accuracies": np.zeros(2)}
    )
    assert "differ by at most 100.0 points, more than 5: NOT the same" in run.run(SOON)["note"]
    with pytest.raises(Skipped):
        gpu_parts._expected(tmp_path / "nowhere", "run", until=0)


def test_a_stage_that_is_stopped_ends_as_one_that_never_was():
    assert agreement.resume() == {"stopped": True, "equal": True}


def test_operations_of_the_fast_network_are_those_that_the_compiler_counts():
    network = gpu_parts.NETS[2]._replace(arguments={"width": 8})
    layers = work.products(network)
    assert layers[0] == 31 * 31 * 4 * 3 * 24 and layers[1] == 31 * 31 * 9 * 24 * 8
    assert layers[2] == 15 * 15 * 9 * 8 * 8 and layers[-1] == 320


def test_what_is_hopeless_on_an_accelerator_is_left_out(monkeypatch):
    monkeypatch.setattr(members.jax, "default_backend", lambda: "gpu")
    cnn = gpu_parts.NETS[0]
    assert members._why_hopeless("unroll", cnn, 8, quick=False) == "of more than 4 members, on an accelerator"
    assert members._why_hopeless("unroll", cnn, 4, quick=False) == ""
    assert members._why_hopeless("vmap in scan", cnn, 16, quick=False) == ""


# --- what is told -----------------------------------------------------------------------------------------


def record(case, side, median):
    return {
        "of": "cnn",
        "case": case,
        "side": side,
        "median": median,
        "min": median,
        "max": median,
        "rounds": 3,
    }


def case(number, *sides):
    return {
        "num_members": number,
        "dtype": "float32",
        "gflop": 4.0,
        "records": [record(f"K = {number}", *pair) for pair in sides],
        "left_out": [
            {"of": "cnn", "case": f"K = {number}", "side": "torch loop", "reason": "torch is not installed"}
        ],
        "note": "auto chose vmap, windows.",
    }


def content():
    machine = tell.machine(None)
    numbers = {
        "mlp": {"differences": {"map": {"value": 2e-5, "bound": 1e-3}, "bf16": {"value": 0.5, "bound": 0.1}}}
    }
    measured = {
        "rates": {"rates": {"float32": 1000.0}},
        "cnn, K = 8": case(8, ("auto", 0.01), ("jit loop", 0.03)),
        "cnn, K = 1": case(1, ("auto", 0.04)),
    }
    rows = [
        {"role": "ensemble", "name": "mean_probs", "n": 8, "accuracy": {"mean": 0.95, "ci95": [0.94, 0.96]}},
        *(
            {"role": role, "name": name, "n": 2, "accuracy": {"mean": 0.9, "ci95": None, "values": values}}
            for role, name, values in (
                ("student", "output_avg", [0.91, 0.93]),
                ("baseline", "baseline", [0.9, 0.91]),
            )
        ),
    ]
    cell = {"seconds": 61.0, "published": 0.6906, "ours": 0.69, "n": 3}
    parts = {
        "numbers": {"items": numbers, "skipped": {}, "machine": machine, "taken_by_others": 0.01},
        "members": {
            "items": measured,
            "skipped": {"x": "3 s were left", "y": "it failed", "z": "3 s were left"},
            "ended": "its time was over",
        },
        "cifar10": {"items": {"whole": {"seconds": 99.6, "rows": rows}}, "skipped": {}},
        "published": {"items": {"crd/x": cell}, "skipped": {}, "taken_by_others": 0.3},
    }
    return {"suite": "gpu", "toy": False, "parts": parts}


def test_tables_say_what_was_found_and_what_was_not():
    text = tell.markdown(gpu_tables.sheets(content()), gpu_tables.findings(content()))
    assert "| mlp | 2.0e-05 | 5.0e-01, above 0.1 |" in text
    assert "|  | K = 1 | K = 8 |" in text and "| jit loop / auto | 3.00 |" in text
    assert "| cnn | 0.10 | 0.40 |" in text  # 4 GFLOP in 0.01 s are 400 of 1000 a second
    assert "**auto: time of K members, in times of one**" in text and "| cnn | 2.00 |" in text
    assert "**CIFAR-10 in 100 s**" in text and "mean_probs" in text
    assert "| crd/x | 69.06 | 69.00 | 3 | 61 |" in text
    assert "Left out: torch loop at cnn, K = 8; cnn, K = 1 (torch is not installed)" in text
    assert "members: skipped x; z: 3 s were left." in text and "members: skipped y: it failed." in text
    # differences of 1 and 2 points: 1.5 and 12.706 (t of one degree, .975) times 0.5 about it
    assert "output_avg over its baseline, the same 2 seeds: +1.50 points [-4.85, 7.85]." in text
    assert "numbers: On " in text and "Other programs" not in text


def test_the_busiest_part_decides_whether_a_page_is_written(tmp_path, monkeypatch, capsys):
    page = tmp_path / "speed.md"
    page.write_text("<!-- benchmark gpu -->\n<!-- end -->\n")
    command = ["gpu", "--json", str(tmp_path / "out"), "--into", str(page)]
    monkeypatch.setattr(gpu, "measure", lambda *asked: content())
    assert __main__.main(command) == 2
    assert "other programs took 30% of the processors" in capsys.readouterr().err
    quiet = content()
    quiet["parts"]["published"]["taken_by_others"] = 0.0
    monkeypatch.setattr(gpu, "measure", lambda *asked: quiet)
    assert __main__.main(command) == 0
    assert "| crd/x | 69.06 |" in page.read_text()


def test_no_minutes_tell_what_was_brought_back(tmp_path, monkeypatch, capsys):
    (tmp_path / "gpu.json").write_text(json.dumps(content()))
    monkeypatch.setattr(gpu, "_run_part", lambda *asked: pytest.fail("something was measured"))
    assert __main__.main(["gpu", "--minutes", "0", "--json", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "CIFAR-10 in 100 s" in told and "a published cell" in told
    assert __main__.main(["gpu", "--minutes", "0", "--json", str(tmp_path), "--parts", "cifar10"]) == 0
    told = capsys.readouterr().out
    assert "CIFAR-10 in 100 s" in told and "a published cell" not in told
    assert __main__.main(["gpu", "--minutes", "0", "--json", str(tmp_path / "elsewhere")]) == 2
    assert "holds nothing of numbers, members, cifar10, published" in capsys.readouterr().err
    assert __main__.main(["gpu", "--minutes", "-1", "--json", str(tmp_path)]) == 2


def test_a_gain_without_noise_or_without_a_baseline_is_told_as_far_as_it_goes():
    def row(role, values, architecture):
        return {"role": role, "name": role, "architecture": architecture, "accuracy": {"values": values}}

    rows = [row("student", [0.92, 0.93], "a"), row("baseline", [0.91, 0.92], "a"), row("student", [0.5], "b")]
    assert gpu_tables._gains(rows) == ["student of a over its baseline, the same 2 seeds: +1.00 points."]


def test_a_rival_that_fails_is_left_out_and_costs_nothing_else():
    def broken(network, num_members):
        raise RuntimeError("Expected grad_output to have type BFloat16\nbut got Float")

    with pytest.raises(LeftOut, match="it failed: .*Expected grad_output to have type BFloat16"):
        members._make_rival(broken, gpu_parts.TOY, 2)


@pytest.mark.slow(seconds=120)
def test_the_whole_of_it_dry_and_then_again_for_nothing(tmp_path):
    command = [sys.executable, "-m", "mtkd_jax.benchmark", "gpu", "--toy", "--minutes", "30"]
    command += ["--json", str(tmp_path / "out"), "--data", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert list(kept["parts"]) == list(gpu.PARTS)
    for part in kept["parts"].values():
        assert (
            part["done"] and not part["skipped"] and {"devices", "commit", "packages"} <= set(part["machine"])
        )
    assert len(list((tmp_path / "out").iterdir())) <= 5
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stderr == "" and json.loads((tmp_path / "out" / "gpu.json").read_text()) == kept
