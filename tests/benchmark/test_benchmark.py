"""The benchmark: the sides train the same network the same way, and ratios are what they say. No timing."""

import importlib.util
import json
import os
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mtkd_jax import validation
from mtkd_jax.benchmark import (
    __main__,
    children,
    clock,
    distill,
    engine,
    host,
    limit,
    members,
    networks,
    plain,
    pytorch,
    rules,
    scale,
    start,
    tell,
    work,
)
from mtkd_jax.benchmark.clock import Case, LeftOut, Side
from mtkd_jax.benchmark.networks import Network
from mtkd_jax.engine import population, training, tuning
from mtkd_jax.engine.training import first_progress
from mtkd_jax.laboratory import rule_study
from mtkd_jax.mesh import Layout
from mtkd_jax.models import layers
from mtkd_jax.runs.logbook import Logbook

TINY = Network("tiny", "mlp", {"hidden": (6, 5)}, (4, 4, 1), 8, 3, (1, 2), (2,))
TINY_CNN = Network("tiny_cnn", "cnn", {"widths": (3, 4), "dense": 5}, (4, 4, 1), 8, 2, (1, 2), (2,))
TINY_RESNET = Network("tiny_resnet", "resnet", {"depth": 8}, (8, 8, 3), 4, 2, (1,), (1,))
TINY_WIDE = Network("tiny_wide", "wide_resnet", {"depth": 10, "width": 2}, (7, 8, 3), 4, 2, (1,), (1,))
HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture(scope="module")
def of_rules():
    few = {"probabilities": [rule_study.REFERENCE], "ranks": ["borda", "kemeny"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule_study, "families", lambda: few)
        return rules.measure(num_members=3, num_examples=20, num_classes=9, quick=True)


def check_schema(result):
    """What every suite returns can be told, and nothing in it is a made-up number."""
    assert json.loads(json.dumps(result)) == result
    for one in result["records"]:
        assert set(one) == {"of", "case", "side", "median", "min", "max", "rounds"}
        assert 0 < one["min"] <= one["median"] <= one["max"]
        assert one["rounds"] >= 1
    for one in result["ratios"]:
        assert set(one) == {"of", "case", "side", "value"}
    for one in result["left_out"]:
        assert set(one) == {"of", "case", "side", "reason"}
        assert one["reason"]
    told = {**result, "machine": tell.machine(0.0)}
    text = tell.markdown(tell.sheets(told), tell.findings(told))
    assert all(f"| {one['side']} |" in text for one in result["records"])
    assert all(one["side"] in text for one in result["left_out"])
    tell.terminal(tell.sheets(told))


def median_of(result, side, case=None):
    return next(
        one["median"] for one in result["records"] if one["side"] == side and case in (None, one["case"])
    )


def ratio_of(result, side, case=None):
    return next(
        one["value"] for one in result["ratios"] if one["side"] == side and case in (None, one["case"])
    )


# --- the sides do the same ------------------------------------------------------------------------------


@pytest.mark.parametrize("network", networks.NETWORKS.values(), ids=lambda network: network.name)
def test_every_side_has_as_many_parameters(network):
    assert engine.num_params(network) == plain.num_params(network)
    if HAS_TORCH:
        assert engine.num_params(network) == pytorch.num_params(network)


def test_another_network_on_one_side_is_refused(monkeypatch):
    monkeypatch.setattr(plain, "num_params", lambda network: 1)
    with pytest.raises(RuntimeError, match="tiny: the sides train different networks"):
        members.check_same_size(TINY)


@pytest.mark.parametrize("network", (TINY, TINY_CNN), ids=lambda network: network.name)
def test_the_engine_trains_like_plain_flax(network):
    """Same initial weights, same batches: the same weights after the steps of a call."""
    job = engine.teachers(network, 1)
    before = for_plain(population.take(first_progress(job).train.params, 0))
    progress, _ = engine.prepare(job)()
    ours = for_plain(population.take(progress.train.params, 0))
    close(ours, trained_plainly(network, {"params": before})["params"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, ours)
    assert min(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.parametrize("network", (TINY_RESNET, TINY_WIDE), ids=lambda network: network.name)
def test_our_residual_networks_are_the_plain_ones(network):
    """Same weights, same images: the same logits and the same new statistics."""
    raw, normalised = images_of(network), networks.batches(network, 1)[0][0, 0]
    variables = network.model.init(jax.random.key(0), raw)
    outputs, ours = jax.jit(partial(network.model.apply, train=True))(variables, raw)
    theirs = {"params": for_plain(variables["params"]), "batch_stats": variables["batch_stats"]}
    logits, changed = jax.jit(partial(plain.build(network).apply, train=True, mutable=["batch_stats"]))(
        theirs, normalised
    )
    close(outputs.logits, logits)
    close(ours, changed)


@pytest.mark.parametrize("network", (TINY, TINY_CNN), ids=lambda network: network.name)
def test_pytorch_trains_like_plain_flax(network):
    torch = pytest.importorskip("torch")
    variables, theirs = with_the_same_weights(network)
    optimizer = pytorch.optimizer(theirs.parameters())
    for image, label in zip(*(values[:, 0] for values in networks.batches(network, 1))):
        optimizer.zero_grad()
        logits = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2)))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(label).long()).backward()
        optimizer.step()
    expected = as_pytorch(trained_plainly(network, variables)["params"], variables["params"])
    close([own.detach().numpy() for own in theirs.parameters()], list(expected))


@pytest.mark.parametrize("network", (TINY_RESNET, TINY_WIDE), ids=lambda network: network.name)
def test_residual_networks_of_pytorch_are_the_plain_ones(network):
    torch = pytest.importorskip("torch")
    variables, theirs = with_the_same_weights(network)
    image = networks.batches(network, 1)[0][0, 0]
    logits, changed = jax.jit(partial(plain.build(network).apply, train=True, mutable=["batch_stats"]))(
        variables, image
    )
    close(theirs(torch.from_numpy(image.transpose(0, 3, 1, 2))).detach().numpy(), logits)
    means = [value.numpy() for name, value in theirs.named_buffers() if name.endswith("running_mean")]
    made = dict.fromkeys(path.rpartition("/")[0] for path in flatten_dict(variables["batch_stats"], sep="/"))
    changed = flatten_dict(changed["batch_stats"], sep="/")
    close(means, [changed[f"{layer}/mean"] for layer in made])


def close(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5), a, b)


def images_of(network):
    """The first batch as our networks see it."""
    images, _ = networks.examples(network.shape)
    return images[networks.order(network, 1)[0, 0]].astype(np.float32) / 255


def for_plain(params):
    """Our parameters under the shapes of a plain network: its head is a dense layer."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict(
        {path: leaf[0] if path.startswith("heads/") else leaf for path, leaf in flat.items()}, sep="/"
    )


def trained_plainly(network, variables):
    """Variables after the steps of a call."""
    transform = plain.optimizer()
    step = jax.jit(plain.one_step(plain.build(network), transform))
    member = variables, transform.init(variables["params"])
    for image, label in zip(*(values[:, 0] for values in networks.batches(network, 1))):
        member = step(member, image, label)
    return member[0]


def with_the_same_weights(network):
    """Variables of plain Flax, and a network of PyTorch that begins with the same."""
    import torch

    image = jnp.zeros((1, *network.shape))
    variables = plain.build(network).init(jax.random.key(0), image, train=False)
    theirs, params = pytorch.build(network).train(), variables["params"]
    with torch.no_grad():
        for own, leaf in zip(theirs.parameters(), as_pytorch(params, params), strict=True):
            own.copy_(torch.from_numpy(leaf.copy()))
    return variables, theirs


def as_pytorch(params, made):
    """Leaves in the axes of PyTorch and in its order, that in which the layers were `made`."""
    flat = flatten_dict(params, sep="/")
    for layer in dict.fromkeys(path.rpartition("/")[0] for path in flatten_dict(made, sep="/")):
        for name in ("kernel", "scale", "bias"):
            if f"{layer}/{name}" in flat:
                leaf = np.asarray(flat[f"{layer}/{name}"])
                yield leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T


# --- operations by formula ------------------------------------------------------------------------------


def conv_by_products(x, kernel, strides=None, padding="SAME", groups=1):
    """A matrix product over shifted copies of the image: has no padding that one may count or not."""
    strides, (height, width) = strides or (1, 1), kernel.shape[:2]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = ((size - k) // s + 1 for size, k, s in zip(x.shape[1:3], (height, width), strides))
    copies = [
        x[:, i : i + rows * strides[0] : strides[0], j : j + columns * strides[1] : strides[1]][
            :, :rows, :columns
        ]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(copies, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize("network", networks.NETWORKS.values(), ids=lambda network: network.name)
def test_products_are_what_the_compiler_counts(network, monkeypatch):
    """The formula leaves out normalising, pooling, ReLU and the rest: little, and never less than nothing."""
    monkeypatch.setattr(layers, "conv", conv_by_products)
    image = jax.ShapeDtypeStruct((1, *network.shape), jnp.float32)
    model = network.model
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    forward = jax.jit(lambda variables, image: model.apply(variables, image)[0].logits)
    counted = forward.lower(variables, image).cost_analysis()["flops"]
    products = 2 * sum(work.products(network))
    assert products <= counted < 1.06 * products, counted / products


def test_operations_of_training_by_hand():
    """4x4x1 images, 16 -> 6 -> 5 -> 10, batches of 8."""
    layers_ = [16 * 6, 6 * 5, 5 * 10]
    assert work.products(TINY) == layers_
    assert work.of_training(TINY) == 2 * 8 * (3 * sum(layers_) - 16 * 6)
    assert work.products(networks.NETWORKS["cnn"]) == [225_792, 3_612_672, 401_408, 1_280]


# --- clock ----------------------------------------------------------------------------------------------


def test_sides_take_turns_and_who_is_far_behind_has_one_round(monkeypatch):
    calls, seconds = [], {"a": 2.0, "b": 1.0, "c": 50.0}
    monkeypatch.setattr(clock, "time_call", lambda run: (calls.append(run()), seconds[calls[-1]])[1])
    sides = {name: Side(lambda name=name: name, units=2) for name in seconds}
    found = clock.take_turns(sides, rounds=3, behind=3.0)
    assert calls == ["a", "b", "c", "a", "b", "a", "b"]
    assert found == {"a": [1.0] * 3, "b": [0.5] * 3, "c": [25.0]}


def test_a_side_that_cannot_be_is_left_out_with_its_reason(capsys):
    def missing():
        raise LeftOut("not there")

    records, left_out = clock.measure(Case("x", "y"), {"a": lambda: Side(lambda: None), "b": missing}, 1)
    assert capsys.readouterr().err == "measuring x, y: a, b\n"
    assert [one["side"] for one in records] == ["a"]
    assert left_out == [{"of": "x", "case": "y", "side": "b", "reason": "not there"}]


def record(case, side, median, rounds=3):
    return {
        "of": "net",
        "case": case,
        "side": side,
        "median": median,
        "min": 0.5 * median,
        "max": 9.0,
        "rounds": rounds,
    }


def test_ratios_are_of_medians():
    records = [record("K = 1", "slow", 6.0), record("K = 1", "fast", 4.0), record("K = 2", "slow", 1.0)]
    assert clock.ratios(records, "slow", "fast") == [
        {"of": "net", "case": "K = 1", "side": "slow / fast", "value": 1.5}
    ]


def test_members_are_compared_with_auto_and_auto_with_the_best_of_ours():
    records = [
        record("K = 1", *pair) for pair in (("vmap", 3.0), ("map", 2.0), ("jit loop", 1.0), ("auto", 4.0))
    ]
    found = {one["side"]: one["value"] for one in members.ratios(records)}
    assert found == {"jit loop / auto": 0.25, "best by hand / auto": 0.5}


def test_a_student_is_compared_with_the_sum_of_its_parts():
    sides = (("no teachers", 2.0), ("forwards", 1.0), ("cached", 4.0), ("asked", 6.0), ("asked apart", 9.0))
    found = distill.ratios([record("K=8 S=1", *pair) for pair in sides])
    assert [one["value"] for one in found] == [0.5, 0.5, 1.5]


def test_the_spread_is_told_with_the_worst_case():
    calm, wild = {"min": 0.9, "max": 1.1}, {"min": 0.5, "max": 1.5}
    records = [{**record("", "a", 1.0), **calm}, {**record("K = 1", "b", 1.0), **wild}]
    records.append({**record("", "once", 1.0, rounds=1), "min": 0.1})
    said = clock.spread(records)
    assert "30 % of the median in the middle case, 50 % at worst (net, K = 1, b)" in said


# --- suites ---------------------------------------------------------------------------------------------


def test_members():
    result = members.measure([TINY], (), quick=True)
    check_schema(result)
    sides = {one["side"] for one in result["records"]}
    assert {"vmap", "map", "unroll", "loop", "shard_map", "pmap", "auto", "jit loop", "vmap in scan"} <= sides
    assert all((name in sides) == HAS_TORCH for name in ("torch loop", "torch vmap"))
    assert {one["case"] for one in result["records"]} == {"K = 2"}
    expected = median_of(result, "jit loop") / median_of(result, "auto")
    assert ratio_of(result, "jit loop / auto") == expected
    ours = [one["median"] for one in result["records"] if one["side"] not in members.RIVALS]
    assert ratio_of(result, "best by hand / auto") == min(ours) / median_of(result, "auto")


def test_without_torch_its_sides_are_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LeftOut, match="torch is not installed"):
        pytorch.loop(TINY, 1)
    members.check_same_size(TINY)


def test_what_is_hopeless_on_a_cpu_is_not_waited_for():
    cnn, mlp = networks.NETWORKS["cnn"], networks.NETWORKS["mlp"]
    assert members._why_hopeless("vmap in scan", cnn, 8, quick=False) == ""
    assert "hopeless" in members._why_hopeless("vmap in scan", cnn, 16, quick=False)
    assert "hopeless" in members._why_hopeless("vmap in scan", cnn, 8, quick=True)
    assert members._why_hopeless("vmap in scan", mlp, 16, quick=True) == ""


def test_host(monkeypatch):
    monkeypatch.setattr(host, "stages", lambda: {"tiny": engine.teachers(TINY, 2)})
    result = host.measure(quick=True)
    check_schema(result)
    assert {one["side"] for one in result["records"]} == {host.RUN, host.DEVICE, host.HOST}
    assert median_of(result, host.HOST) < median_of(result, host.RUN)
    share = median_of(result, host.HOST) / median_of(result, host.RUN)
    assert f"{share:.1%} of it" in result["notes"][1]


def test_what_the_host_is_timed_at_is_what_it_does_in_a_run(tmp_path):
    job, waits = engine.teachers(TINY, 2), []
    for name in ("timed", "run"):
        (tmp_path / name).mkdir()
    with Logbook(tmp_path / "timed", quiet=True) as logbook:
        host.run_as_in_training(job, logbook, waits)
    with Logbook(tmp_path / "run", quiet=True) as logbook:
        training.fit(job, tmp_path / "checkpoints", logbook)
    timed, run = (
        [
            {**json.loads(line), "wall": None}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("timed", "run")
    )
    assert timed == run and timed
    assert len(waits) == 1


def first_guess(job):
    """In place of the timed choice, which compiles the program in every candidate layout."""
    return job.candidates[0]


def test_distill(monkeypatch):
    monkeypatch.setattr(engine, "fastest", first_guess)
    monkeypatch.setattr(distill, "NUM_TEACHERS", (2,))
    monkeypatch.setattr(distill, "NUM_STUDENTS", (3,))
    result = distill.measure([TINY], quick=True)
    check_schema(result)
    one, many = "K=2 S=1", "K=2 S=3"
    parts = median_of(result, "no teachers", one) + median_of(result, "forwards", one)
    assert ratio_of(result, "(no teachers + forwards) / asked", one) == parts / median_of(
        result, "asked", one
    )
    apart = median_of(result, "asked apart", many)
    assert ratio_of(result, "asked apart / asked", many) == apart / median_of(result, "asked", many)


def test_fusion(of_rules):
    check_schema(of_rules)
    assert {one["side"] for one in of_rules["left_out"]} == {"kemeny"}
    expected = median_of(of_rules, "borda") / median_of(of_rules, rule_study.REFERENCE)
    assert ratio_of(of_rules, f"borda / {rule_study.REFERENCE}") == expected


def test_limit(monkeypatch):
    monkeypatch.setattr(engine, "fastest", first_guess)
    monkeypatch.setattr(limit, "LEAST_GFLOP", 1e-4)
    monkeypatch.setattr(limit, "NUM_MEMBERS", 2)
    result = limit.measure([TINY], quick=True, sizes=(16,))
    check_schema(result)
    best = max(median_of(result, "product of 16"), median_of(result, "products of 16"))
    assert ratio_of(result, "tiny, K = 2 / best product") == median_of(result, "tiny, K = 2") / best


def answered_here(monkeypatch):
    """Children whose work is done in this process, equal ones once: (module, arguments, environment)."""
    asked, answers = [], {}

    def ask(module, arguments, environment):
        asked.append((module, tuple(arguments), dict(environment)))
        if asked[-1][:2] not in answers:
            work_of = {"start": start.answer, "scale": scale.on_devices}[module]
            answers[asked[-1][:2]] = json.loads(json.dumps(work_of(*arguments)))
        return answers[asked[-1][:2]]

    monkeypatch.setitem(networks.NETWORKS, "tiny", TINY)
    monkeypatch.setattr(children, "ask", ask)
    monkeypatch.setattr(start.workdir, "use_compile_cache", lambda: None)
    return asked


def test_start(monkeypatch):
    """With two families in the place of ten, on one device."""
    asked, reports, whole_run = answered_here(monkeypatch), [], start.experiment.run
    jax.clear_caches()  # another test of this process may have compiled the same programs

    def run_on_one(config, folder, quiet):
        config.runtime.how = "vmap"
        reports.append(whole_run(config, folder, quiet))

    monkeypatch.setattr(start, "FAMILIES", ("output_avg", "relations.rkd"))
    monkeypatch.setattr(start.experiment, "run", run_on_one)
    result = start.measure([TINY], quick=True)
    check_schema(result)
    for what, rounds in ((start.STEPS, 3), (start.RUN, 2)):
        folders = [where["XDG_CACHE_HOME"] for _, arguments, where in asked if arguments == ("tiny", what)]
        warm = folders[0]
        assert folders.count(warm) == 1 + rounds
        assert len(set(folders) - {warm}) == rounds
    for case in ("K = 8", "2 families"):
        cold, warm = (median_of(result, side, case) for side in ("cold", "warm"))
        assert ratio_of(result, "cold / warm", case) == cold / warm
        said = children.ask("start", ["tiny", start.RUN if "families" in case else start.STEPS], {})
        assert median_of(result, "cold, compiling", case) == said["seconds"] > 0
        assert said["programs"] > 2  # a train step, initial weights, the first progress
        assert any(f"{case}: {said['programs']} programs" in note for note in result["notes"])
    (report,) = reports
    assert {"output_avg", "relations.rkd"} <= {row["name"] for row in report["rows"]}


def test_what_is_compiled_is_counted_and_what_was_compiled_before_is_not():
    double = jax.jit(lambda x: 2.0 * x)
    with start._programs() as found:
        for x in (np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros(4, np.float32)):
            double(x)
    assert found["programs"] == 2 and found["seconds"] > 0
    with start._programs() as again:
        double(np.zeros(3, np.float32))
    assert again == {"programs": 0, "read": 0, "seconds": 0.0}
    assert found["programs"] == 2  # nobody listens any more


@pytest.mark.parametrize("network", networks.NETWORKS.values(), ids=lambda network: network.name)
def test_the_run_of_the_start_has_ten_families(network):
    config = start.config_of_run(network)
    validation.validate(config)
    assert (
        len({mode.rpartition(".")[0] for mode in config.students.modes}) == len(config.students.modes) == 10
    )


def test_scale(monkeypatch):
    answered_here(monkeypatch)
    monkeypatch.setattr(scale, "NUM_DEVICES", (1, 2, 4))  # of this session's four
    result = scale.measure([TINY], quick=True)
    check_schema(result)
    assert [one["side"] for one in result["records"]] == ["on 1", "on 2", "on 4"]
    assert {one["rounds"] for one in result["records"]} == {scale.CALLS}
    quotient = median_of(result, "on 1") / median_of(result, "on 4")
    assert ratio_of(result, "on 1 / on 4") == quotient
    assert ratio_of(result, "efficiency on 4") == quotient / min(4, os.cpu_count())
    assert "on 1, 2, 4 devices: 0, as asserted" in result["notes"][1]


def test_members_that_would_exchange_something_are_an_error(monkeypatch):
    """And what is looked for would be found: devices that share a batch sum their gradients."""
    job = engine.teachers(TINY, 2)
    found = [
        scale.num_collectives(engine.compiled_text(tuning.with_layout(job, layout)))
        for layout in (Layout("vmap", 2), Layout("vmap", 1, 2))
    ]
    assert found[0] == 0 < found[1]
    scale.check_silent("tiny", 2, found[0])
    with pytest.raises(RuntimeError, match="tiny on 2 devices: [1-9].* collectives in a step, not 0"):
        scale.check_silent("tiny", 2, found[1])


@pytest.mark.slow
def test_children_are_processes_of_their_own(tmp_path):
    said = children.ask(
        "start", ["mlp", "steps"], {"XDG_CACHE_HOME": str(tmp_path), "JAX_NUM_CPU_DEVICES": "3"}
    )
    assert len(said["devices"]) == 3
    assert list(tmp_path.rglob("*-cache")), "nothing was compiled into the folder"
    with pytest.raises(RuntimeError, match="KeyError"):
        children.ask("start", ["no network", "steps"], {})


# --- command line -----------------------------------------------------------------------------------------


def test_the_command_writes_json_and_the_table_between_its_marks(tmp_path, monkeypatch, capsys, of_rules):
    monkeypatch.setattr(rules, "measure", lambda **size: of_rules)
    monkeypatch.setattr(__main__.workdir, "use_compile_cache", lambda: None)
    monkeypatch.setattr(tell, "share_of_others", lambda *since: 0.02)
    readme, numbers = tmp_path / "README.md", tmp_path / "numbers.json"
    readme.write_text("before\n<!-- benchmark fusion -->\n<!-- end -->\nafter\n")
    assert __main__.main(["fusion", "--quick", "--json", str(numbers), "--into", str(readme)]) == 0
    result = json.loads(numbers.read_text())
    assert result["suite"] == "fusion"
    assert {"processor", "cores", "devices", "commit", "packages"} <= set(result["machine"])
    assert {"jax", "jaxlib"} <= set(result["machine"]["packages"])
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "| borda / mean_probs |" in text
    assert "borda / mean_probs" in capsys.readouterr().out


def test_numbers_of_a_busy_machine_are_told_and_kept_and_come_into_no_page(
    tmp_path, monkeypatch, capsys, of_rules
):
    monkeypatch.setattr(rules, "measure", lambda **size: of_rules)
    monkeypatch.setattr(__main__.workdir, "use_compile_cache", lambda: None)
    monkeypatch.setattr(tell, "share_of_others", lambda *since: 0.4)
    page, numbers = tmp_path / "page.md", tmp_path / "numbers.json"
    page.write_text("<!-- benchmark fusion -->\n<!-- end -->\n")
    assert __main__.main(["fusion", "--quick", "--json", str(numbers), "--into", str(page)]) == 2
    said = capsys.readouterr()
    assert "--into: other programs took 40% of the processors, more than 10%" in said.err
    assert page.read_text() == "<!-- benchmark fusion -->\n<!-- end -->\n"
    assert json.loads(numbers.read_text())["machine"]["taken_by_others"] == 0.4
    tell.check_quiet(None)  # a system that does not tell


@pytest.mark.parametrize(
    ("arguments", "said"),
    (
        (["gpu"], "gpu: --json FOLDER is missing"),
        (
            ["gpu", "--json", "x", "--parts", "numbers,member"],
            "no part 'member'; known are numbers, members,",
        ),
        (["gpu", "--json", "x", "--minutes", "-1"], "--minutes -1: must be minutes, or 0 to tell"),
        (["limit", "--toy"], "--toy: for the suite gpu alone"),
        (["speed"], "speed"),
        (["members", "--networks", "cnn,alexnet"], "no network 'alexnet'; known are mlp, cnn"),
        (["members", "--members", "1,0"], "--members 1,0"),
        (["members", "--members", "many"], "--members many"),
        (["distill", "--members", "2"], "--members: the suite distill has its own K"),
        (["fusion", "--networks", "cnn"], "--networks: the suite fusion has no choice"),
    ),
)
def test_what_the_user_can_mend_is_one_line(arguments, said, capsys):
    assert __main__.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


def test_the_share_of_others_is_told_when_it_spoils_the_numbers(of_rules):
    busy, quiet = (tell.findings({**of_rules, "machine": tell.machine(share)})[-1] for share in (0.4, 0.01))
    assert "Other programs took 40% of the processors" in busy
    assert "Other programs" not in quiet
    assert tell.seconds_of_others() is None or tell.seconds_of_others() > 0
