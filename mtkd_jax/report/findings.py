"""The words of the report, written from its numbers: what a run shows, and under which conditions.

Nothing is called better unless Holm's p is below 0.05, nor equivalent unless that was tested; all else is
said to be undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from mtkd_jax.config import control_and_mode, name_and_model, row_of
from mtkd_jax.report.wording import (
    bears_looking,
    count,
    interval,
    listed,
    model_of,
    p_value,
    percent,
    place_of,
    points,
    title_of,
    transfers_of,
    turned,
    where,
    with_peers,
    within,
)
from mtkd_jax.results import comparisons, intervals, power

MOST_TO_TELL = 0.2  # in accuracy: who can see nothing smaller sees next to nothing
COST_IN_WORDS = {"flops": "FLOPs", "params": "parameters"}
FEWEST_SEEDS = 3  # with two, a t interval spans 12.7 standard errors to each side
FEW_PAIRS = 4  # findings of one sort that are told one by one


def summarise(report: dict) -> list[str]:
    """Paragraphs in plain language, from the numbers of report.json alone."""
    margin = report["margin"]
    gaps = (_gap(gap, margin, where(gap, report)) for gap in report["gaps"])
    found = [_ensemble(report), *gaps, *_by_size(report), *_detection(report)]
    found += _seeds_added(report)
    rivals: dict[tuple[str, str, str], list[dict]] = {}
    for one in report["comparisons"]:
        if one["family"] != power.WITH_PEERS:
            rival = control_and_mode(one["b"])[0] or one["b"]
            rivals.setdefault((one["family"], one["architecture"], rival), []).append(one)
    for tested in rivals.values():
        on_accuracy, on_nll = (
            [one for one in tested if one["metric"] == metric] for metric in comparisons.TESTED
        )
        found.append(_paragraph(on_accuracy, on_nll, margin, model_of(tested[0], report)))
    found += [*_with_peers(report), *_undertrained(report)]
    found += [*_cohorts(report), *_kept(report), *_cascade(report)]
    return [*found, *_apart(report), *_deploy(report)]


def _ensemble(report: dict) -> str:
    teachers = [row for row in report["rows"] if row["role"] == "teacher"]
    singles = [value for row in teachers for value in row["accuracy"]["values"]]
    fused = report["sub_ensembles"][-1]["mean"]
    if len(singles) == 1:
        return f"Teachers: The one teacher reaches {percent(fused)}."
    return (
        f"Teachers: All {len(singles)} fused by mean_probs reach {percent(fused)}; "
        f"one teacher alone {percent(np.mean(singles))} on average, "
        f"at best {percent(max(singles))} (seen on test)."
    )


def _undertrained(report: dict) -> list[str]:
    """A warning where networks are behind the linear model on validation by more than its noise."""
    linear = next((row for row in report["rows"] if row["role"] == "linear"), None)
    if linear is None:
        return []
    reached = linear["val"]["accuracy"]
    noise = 2 * np.sqrt(reached * (1 - reached) / sum(report["class_counts"]["val"]))
    behind = [
        f"{title_of(row, report)}{f' ({where})' if (where := row['transfer']) else ''} with "
        f"{percent(row['val']['accuracy'])}"
        for row in report["rows"]
        if row["role"] in ("teacher", "baseline") and row["val"]["accuracy"] < reached - noise
    ]
    if not behind:
        return []
    return [
        f"Behind a linear model on pixels ({percent(reached)} on validation): {', '.join(behind)}. Train "
        "longer, or with another rate, before anything is concluded."
    ]


def _gap(gap: dict, margin: float, where_trained: str) -> str:
    difference = f"{points(gap['difference'])} {interval(gap['ci95'], 'accuracy')}"
    where = f"the baseline trained without teachers ({percent(gap['baseline'])})"
    head = f"What there is to gain ({where_trained})"
    if gap["verdict"] == "equivalent":
        return f"{head}: The ensemble and {where} are equivalent, {within(margin)}: {difference}."
    if gap["verdict"] == "better":
        return f"{head}: The ensemble is ahead of {where} by {difference}, more than noise."
    if gap["ci95"] is not None and gap["ci95"][1] < 0:
        return f"{head}: The ensemble is behind {where}, {difference}."
    return f"{head}: The ensemble is not told apart from {where}: {difference}."


def _by_size(report: dict) -> list[str]:
    """How small a student may be: that of each architecture against the ensemble, from the smallest on."""
    found = report["students_by_size"]
    if not found:
        return []
    words = {"undecided": "not told apart"}
    listed = "; ".join(
        f"{title_of(one, report)} ({one['transfer']}, {count(one['params'])} parameters) "
        f"{points(one['difference'])} {interval(one['ci95'], 'accuracy')}, "
        f"{words.get(one['verdict'], one['verdict'])}"
        for one in found
    )
    head = "How small a student may be" if len(found) > 1 else "The student and the ensemble"
    return [f"{head}: Against the ensemble by mean_probs, {listed}. {_smallest(report)}".strip()]


def _smallest(report: dict) -> str:
    """Which is the smallest student as good as the ensemble; being not told apart is said to be less."""
    margin = within(report["margin"])
    if all(one["n"] < 2 for one in report["students_by_size"]):
        return "Of one seed nothing is told."
    if len(report["students_by_size"]) < 2:
        return ""
    as_good, unclear = smallest_students(report)
    sentences = [f"None is shown to be equivalent to it, {margin}."]
    if as_good is not None:
        how = "better than it" if as_good["verdict"] == "better" else f"equivalent to it, {margin},"
        sentences = [f"The smallest that is {how} is {title_of(as_good, report)}."]
    if unclear is not None:
        sentences.append(
            f"The smallest that is not told apart from it, which is less, is {title_of(unclear, report)}."
        )
    elif as_good is None:
        sentences.append("All are worse.")
    return " ".join(sentences)


def smallest_students(report: dict) -> tuple[dict | None, dict | None]:
    """(The smallest student that is as good as the ensemble, the smallest undecided one below it).

    Of `students_by_size`; as good is equivalent or better, and None stands where there is none.
    """
    by_size = report["students_by_size"]
    as_good = next((one for one in by_size if one["verdict"] in ("equivalent", "better")), None)
    unclear = next((one for one in by_size if one["verdict"] == "undecided"), None)
    if None not in (as_good, unclear) and by_size.index(unclear) > by_size.index(as_good):
        unclear = None
    return as_good, unclear


def _paragraph(on_accuracy: list[dict], on_nll: list[dict], margin: float, model: str) -> str:
    """All modes against one rival: accuracy in sentences, NLL in short."""
    one = on_accuracy[0]
    if one["family"] == comparisons.CROSS_FAMILY:
        of_model = f" ({model})" if model else ""
        against = f"With the unlabelled images, against the labelled-only baseline{of_model}"
    else:
        against = f"Against {_name_of(one['b'])} ({listed(one['family'], model)})"
    return f"{against}: {_on_accuracy(on_accuracy, margin)} {_on_nll(on_nll)}"


def _on_accuracy(tested: list[dict], margin: float) -> str:
    """One sentence a finding, then one for all that is equivalent and one for all that is undecided."""
    words = {"better": "beats", "worse": "is worse than"}
    sentences = [
        f"{one['a']} {words[one['verdict']]} {_name_of(one['b'])}, {points(one['mean_difference'])} "
        f"{interval(one['ci95'], 'accuracy')}, Holm p {p_value(one['p_holm'])}."
        for one in tested
        if one["verdict"] in words
    ]
    equivalent = [one for one in tested if one["verdict"] == "equivalent"]
    if equivalent:
        listed = ", ".join(
            f"{one['a']} {points(one['mean_difference'])} {interval(one['ci95'], 'accuracy')}"
            for one in equivalent
        )
        sentences.append(f"Equivalent, {within(margin)}: {listed}.")
    unclear = [one for one in tested if one["p_holm"] is not None and one["verdict"] == "undecided"]
    if unclear:
        listed = ", ".join(f"{one['a']} {points(one['mean_difference'])}" for one in unclear)
        sentences.append(f"Undecided: {listed}{_could_have_been_seen(unclear)}.")
    untested = [one for one in tested if one["p_holm"] is None]
    if untested:
        listed = ", ".join(f"{one['a']} {points(one['mean_difference'])}" for one in untested)
        sentences.append(f"Not testable, for want of differing pairs of seeds: {listed}.")
    return " ".join(sentences)


def _on_nll(tested: list[dict]) -> str:
    """ "NLL: lower for ..., higher for ...", each name with its difference; nothing of what is noise."""
    parts = []
    for verdict, words in (("better", "lower for"), ("worse", "higher for")):
        names = [f"{one['a']} ({one['mean_difference']:+.3f})" for one in tested if one["verdict"] == verdict]
        if names:
            parts.append(f"{words} {', '.join(names)}")
    return f"NLL: {'; '.join(parts) or 'undecided'}."


def _name_of(name: str) -> str:
    control, _ = control_and_mode(name)
    if control:  # of each mode its own
        return f"the same by a {control.replace('_', ' ')}"
    return f"the {name}" if name.split(" ")[0] in ("baseline", "control") else name


def _could_have_been_seen(unclear: list[dict]) -> str:
    sizes = [one["detectable"] for one in unclear if one["detectable"] is not None]
    if not sizes:
        return ""
    num_seeds, size = unclear[0]["n"], median(sizes)
    if num_seeds < FEWEST_SEEDS or size > MOST_TO_TELL:
        return f"; {num_seeds} seeds are too few to see much"
    return f"; with {num_seeds} seeds a true difference of about {100 * size:.1f} points would have been seen"


def _detection(report: dict) -> list[str]:
    """How many of the positives are missed at validation's threshold: by whom, and at which false alarms."""
    asked, kept = report["detection"], report["chosen_student"]
    if asked is None:
        return []
    rate, num_positive = asked["false_alarm_rate"], count(asked["num_positive"])
    who = [
        row
        for row in report["rows"]
        if row["name"] in ("mean_probs", "baseline") and row["auroc"] is not None
    ]
    missed = []
    if kept is not None:
        own = kept["detector"]
        missed.append(
            f"the best student misses {count(own['misses'])} of {num_positive} "
            f"({percent(own['false_alarm_rate'])} false alarms)"
        )
        baseline = [row for row in who if place_of(row) == place_of(kept, name="baseline")]
        missed += [f"its baseline {_misses(row)}" for row in baseline]
    missed += [f"the ensemble {_misses(row)}" for row in who if row["role"] == "ensemble"]
    deploy = report["deploy"]
    if kept is not None and _place(deploy, report) != _place(kept, report):
        own = deploy["detector"]
        missed.append(f"the network to deploy {count(own['misses'])} ({percent(own['false_alarm_rate'])})")
    if not missed:
        missed = [f"{row['name']} misses {_misses(row)} of {num_positive}" for row in report["rows"][:1]]
    found = (
        f"Detection of {asked['positive']}: At the threshold that allows {100 * rate:g} % false alarms on "
        f"validation, {', '.join(missed)}."
    )
    over = [row for row in who if (row["operating_point"]["false_alarm_rate"]["ci95"] or (0.0,))[0] > rate]
    if over:
        found += (
            " On test there are more false alarms than that: validation's images are not like test's, or too "
            "few to set a threshold by."
        )
    return [found]


def _misses(row: dict) -> str:
    point = row["operating_point"]
    on_average = " on average" if row["n"] > 1 else ""
    return f"{count(point['misses']['mean'])}{on_average} ({percent(point['false_alarm_rate']['mean'])})"


def in_one_line(report: dict) -> str:
    """What a run shows, as short as it can be said: who beats the baseline, and which student is kept."""
    parts = []
    for gap in report["gaps"]:
        asked = (gap["transfer"], gap["architecture"], "baseline", "accuracy")
        tested = [
            one
            for one in report["comparisons"]
            if (one["family"], one["architecture"], one["b"], one["metric"]) == asked
        ]
        parts.append(
            f"{where(gap, report)}: ensemble - baseline {points(gap['difference'])} "
            f"{interval(gap['ci95'], 'accuracy')}; {_told_apart(tested)}"
        )
    if (kept := report["deploy"]) is not None:
        parts.append(f"deploy: {_place(kept, report)}, {percent(kept['accuracy'])}, NLL {kept['nll']:.3f}")
    return ". ".join([*parts, ""]).strip() or _ensemble(report)


def _told_apart(tested: list[dict]) -> str:
    said = {"better": "better than the baseline"}
    names = {
        said.get(verdict, verdict): ", ".join(one["a"] for one in tested if one["verdict"] == verdict)
        for verdict in intervals.VERDICTS
    }
    return "; ".join(f"{words}: {which}" for words, which in names.items() if which)


def conditions(report: dict) -> str:
    """What a run had and tried, in one line: images, teachers, students, seeds and grid."""
    sizes = report["sizes"]
    words = {"train": "labelled", "unlabelled": "unlabelled", "other": "other"}
    words |= {"val": "validation", "test": "test"}
    images = ", ".join(f"{sizes[name]:,} {word}" for name, word in words.items() if sizes.get(name))
    teachers = ", ".join(
        f"{row['n']} {row['architecture']}" for row in report["rows"] if row["role"] == "teacher"
    )
    said = f"{report['dataset']}, {images} images; teachers: {teachers}"
    students = [row for row in report["rows"] if row["role"] == "student"]
    if not students:
        return said
    networks = ", ".join(dict.fromkeys(row["architecture"] for row in students))
    points_of = [point for row in students for point in row["grid"]]
    grid = "; ".join(
        f"{name} {', '.join(f'{value:g}' for value in sorted({point[name] for point in points_of}))}"
        for name in ("alpha", "temperature")
        if points_of
    )
    return f"{said}; students: {networks}, {max(row['n'] for row in students)} seeds; {grid}".removesuffix(
        "; "
    )


def advice(report: dict) -> str:
    """The last sentence of a report, which names the network to deploy; "" where there is none."""
    if report["deploy"] is None:
        return ""
    _, deploy, which = report["findings"][-1].rpartition("Deploy ")
    return deploy + which


def _apart(report: dict) -> list[str]:
    """Members that end far from the others of their row on validation, see `results.scoring`."""
    told: dict[bool, list[str]] = {}
    for row in report["rows"]:
        for one in row["apart"]:
            collapsed = row.get("num_in_cohort", 1) > 1 and one["val_accuracy"] < one["siblings"]
            told.setdefault(collapsed, []).append(
                f"{_place({**row, **one}, report)} ends at {percent(one['val_accuracy'])} on validation, "
                f"where the median of the others is {percent(one['siblings'])}"
            )
    paragraphs = {
        True: "Collapsed cohort (†): {}. That is farther below its other seeds than five of their robust "
        "standard deviations, four standard errors of an accuracy and two points. The plot of homogenisation "
        "shows whether its peers had become the same before.",
        False: "Far from its siblings (†): {}. It widens the interval of its row and moves its mean: look at "
        "the learning curves before you read anything from that row.",
    }
    return [text.format("; ".join(told[kind])) for kind, text in paragraphs.items() if kind in told]


def _with_peers(report: dict) -> list[str]:
    """Students with peers against one another: those that are told apart, and how many pairs are not."""
    paragraphs = []
    for tested in with_peers(report):
        ahead = [turned(one) if one["verdict"] == "worse" else one for one in tested]
        ahead = [one for one in ahead if one["verdict"] == "better"]
        parts = _each_pair(ahead) if len(ahead) <= FEW_PAIRS else _by_who_is_ahead(ahead)
        number = count(len(tested))
        equivalent = sum(one["verdict"] == "equivalent" for one in tested)
        unclear = [one for one in tested if one["verdict"] == "undecided"]
        where = listed(tested[0]["a_transfer"], model_of(tested[0], report))
        if equivalent:
            parts.append(f"Equivalent, {within(report['margin'])}: {equivalent} of {number} pairs.")
        if unclear:
            parts.append(f"Undecided: {len(unclear)} of {number} pairs{_could_have_been_seen(unclear)}.")
        paragraphs.append(f"Students with peers, against one another ({where}): {' '.join(parts)}")
    return paragraphs


def _each_pair(ahead: Sequence[dict]) -> list[str]:
    return [
        f"{one['a']} beats {one['b']}, {points(one['mean_difference'])} "
        f"{interval(one['ci95'], 'accuracy')}, Holm p {p_value(one['p_holm'])}."
        for one in ahead
    ] or ["None is ahead of another."]


def _by_who_is_ahead(ahead: Sequence[dict]) -> list[str]:
    """A sentence for all methods that the same others beat, those that most beat first."""
    winners = {one["b"]: tuple(other["a"] for other in ahead if other["b"] == one["b"]) for one in ahead}
    sentences = []
    for these in sorted(dict.fromkeys(winners.values()), key=len, reverse=True):
        losers = [name for name, own in winners.items() if own == these]
        by = sorted(100 * one["mean_difference"] for one in ahead if one["b"] in losers)
        size = f"{by[0]:.2f}" if len(by) == 1 else f"{by[0]:.2f} to {by[-1]:.2f}"
        are = "is" if len(these) == 1 else "are"
        sentences.append(f"{', '.join(these)} {are} ahead of {', '.join(losers)}, by {size} points.")
    return [*sentences, "All with Holm p below 0.05; the triangle has every difference."]


def _cohorts(report: dict) -> list[str]:
    """What students lose, or gain, against the cohorts that they learned in; of many the two ends."""
    known = sorted(report.get("cohorts", []), key=lambda one: one["mean_difference"])
    if not known:
        return []
    told = known if len(known) <= FEW_PAIRS else [known[0], known[-1]]
    decided = [one for one in known if one["ci95"] is not None and not one["ci95"][0] <= 0 <= one["ci95"][1]]
    behind = sum(one["mean_difference"] < 0 for one in decided)
    of_all = f" Beyond noise {behind} of {len(known)} are behind and {len(decided) - behind} ahead."
    return [
        f"A student against its cohort: {'; '.join(_against_cohort(one, report) for one in told)}."
        + (of_all if len(known) > len(told) else "")
        + " A cohort decides by the mean probabilities of its peers; apart is the total variation of two "
        "predictions of an image, 0 if they are the same."
    ]


def _against_cohort(one: dict, report: dict) -> str:
    between = "" if one["ci95"] is None else f" {interval(one['ci95'], 'accuracy')}"
    apart = "" if one["peers_apart"] is None else f", of which two are {one['peers_apart']:.3f} apart"
    return (
        f"{title_of(one, report)} ({one['transfer']}) {points(one['mean_difference'])}{between} from the "
        f"{percent(one['cohort'])} of its {one['num_in_cohort']} peers{apart}"
    )


def _kept(report: dict) -> list[str]:
    """Of the student that validation chooses, what it keeps of the ensemble beyond accuracy."""
    found, chosen = report.get("kept"), report["chosen_student"]
    if found is None or chosen is None:
        return []
    row = next(
        (
            row
            for section in found["sections"]
            for row in section["rows"]
            if place_of(row) == place_of(chosen)
        ),
        None,
    )
    if row is None:
        return []
    shares = {found["quantities"][name]["title"]: one for name, one in row["shares"].items()}
    told = [
        f"{100 * one['share']:.0f} % of the {title.replace(' %', '')}"
        + ("" if one["ci95"] is None else " [{:.0f}, {:.0f}]".format(*(100 * end for end in one["ci95"])))
        for title, one in shares.items()
        if one["share"] is not None
    ]
    undefined = [title.replace(" %", "") for title, one in shares.items() if one["share"] is None]
    if not told:
        return []
    rest = f" In {', '.join(undefined)} the ensemble shows nothing to be kept." if undefined else ""
    who = f"{title_of(row, report)} ({row['transfer']})"
    return [f"What is kept of (ensemble - baseline): {who} keeps {', '.join(told)}.{rest}"]


def _cascade(report: dict) -> list[str]:
    """What a student gains that hands over to the ensemble where it is not sure, and what that costs."""
    found = report.get("cascade")
    if found is None:
        return []
    who, allowed = _place(found["student"], report), f"{100 * found['tolerance']:g} points"
    if not found["certified"]:
        return [
            f"With a safety net: Nothing certifies that {who} is at most {allowed} worse than the ensemble, "
            f"95 % sure, whatever it hands over to it: that takes {found['units_needed']:,} validation "
            f"{found['units']}. There are {found['num_units']:,}, which are enough for "
            f"{100 * found['smallest_tolerance']:.1f} points at best (report.cascade_tolerance)."
        ]
    test = found["test"]["cascade"]
    share, lost = (percent(test[name]["mean"]) for name in ("share", "lost"))
    right = {one: percent(of["accuracy"]["mean"]) for one, of in found["test"].items()}
    return [
        f"With a safety net: {who} keeps what it is more than {percent(found['threshold'])} sure of and "
        f"hands over {share} of the test images to the ensemble by {found['rule']}: {right['cascade']} right "
        f"(alone {right['student']}, the ensemble {right['ensemble']}), for {test['cost']['mean']:.2f} times "
        f"the ensemble's {COST_IN_WORDS[found['cost']['of']]}. By validation it is at most {allowed} worse "
        f"than the ensemble, 95 % sure{_of_groups(found)}; on test {lost} of the images are lost that the "
        "ensemble has right."
    ]


def _of_groups(found: dict) -> str:
    return "" if found["units"] == "images" else f" (over {found['num_units']:,} groups, each counted alike)"


def _deploy(report: dict) -> list[str]:
    """Which network to deploy, and why; its last sentence is the last word of a report."""
    kept = report["deploy"]
    if kept is None:
        return []
    best, choose = kept["best"], kept["choose"]
    is_best = _place(best, report) == _place(kept, report)
    others = [
        f"the best {role} is {_on_validation(one, report)}"
        for role, one in kept["best_of_role"].items()
        if role != best["role"]
    ]
    said = [
        f"What to deploy: Of all {kept['num_networks']} single networks {_on_validation(best, report)} has "
        f"the lowest NLL on validation{''.join(f'; {other}' for other in others)}.",
        *_ensemble_at_its_price(report, kept),
    ]
    asks = f"as export.choose = {choose} asks"
    name, model = name_and_model(choose)
    is_asked = name in ("best", kept["name"]) or (name, kept["role"]) == ("student", "student")
    if not is_asked or model not in ("", kept["architecture"]):
        said.append(f"Of {choose}, which export.choose asks for, no network is left.")
        asks = "the best of those that are"
    elif is_best:
        asks = "by validation alone"
    else:
        said.append(f"{_place(kept, report)} has {_numbers(kept)} there.")
        asks += f", though {_place(best, report)} is better on validation"
    said += _smaller(report, kept)
    said.append(
        f"Deploy {_name_of(_place(kept, report))}, {asks}; on test it has {percent(kept['accuracy'])}, "
        f"NLL {kept['nll']:.3f}{_its_verdict(report, kept)}."
    )
    return [" ".join(said)]


def _smaller(report: dict, kept: dict) -> list[str]:
    """The sizes of student below that of the network to deploy: what they are worth, and how to have one."""
    own, rows = _row_of(report, kept), {place_of(row): row for row in report["rows"]}
    by_size = [one for one in report["students_by_size"] if one["params"] < own["params"]]
    smaller = [rows[place_of(one)] for one in reversed(by_size)]
    if not smaller:
        return []
    listed = "; ".join(
        f"{title_of(row, report)} ({row['transfer']}) has {_numbers(_on_average(row))} with "
        f"{percent(row['params'] / own['params'])} of these parameters"
        for row in smaller
    )
    asked = row_of("student", smaller[0]["architecture"])
    return [f"Smaller students, on average over seeds: {listed}; export.choose = '{asked}' asks for one."]


def _on_average(row: dict) -> dict:
    """What a row has on validation, as `_numbers` reads it."""
    return {"val_nll": row["val"]["nll"], "val_accuracy": row["val"]["accuracy"]}


def _row_of(report: dict, network: dict) -> dict:
    return next(row for row in report["rows"] if place_of(row) == place_of(network))


def _its_verdict(report: dict, kept: dict) -> str:
    """What is said of the row of a network, in the sentence that advises it; "" where nothing is."""
    row = _row_of(report, kept)
    if row["verdict"] is None:
        return ""
    return f"; against the baseline, over {row['n']} seeds: {row['verdict']}"


def _ensemble_at_its_price(report: dict, kept: dict) -> list[str]:
    """What all teachers together say on validation, and how many times what one network costs."""
    ensemble = next((row for row in report["rows"] if row["rule"] == "mean_probs"), None)
    own = _row_of(report, kept)
    num_teachers = report["diversity"]["num_teachers"]
    if ensemble is None or num_teachers == 1:
        return []
    prices = [
        f"{ratio:.1f} times the {what}"
        for what, ratio in (
            ("parameters", _ratio(ensemble["params"], own["params"])),
            ("FLOPs", _ratio(ensemble["flops"], own["flops"])),
            ("time an image", _ratio(ensemble["latency_ms"]["1"], own["latency_ms"]["1"])),
        )
        if ratio is not None
    ]
    price = f", for {', '.join(prices)} of {_place(kept, report)}" if prices else ""
    return [f"All {num_teachers} teachers fused by mean_probs have {_numbers(_on_average(ensemble))}{price}."]


def _ratio(whole: float | None, part: float | None) -> float | None:
    return whole / part if whole and part else None


def _on_validation(network: dict, report: dict) -> str:
    return f"{_place(network, report)} with {_numbers(network)}"


def _numbers(network: dict) -> str:
    nll = network["val_nll"]
    return f"{'no finite NLL' if nll is None else f'{nll:.3f}'} ({percent(network['val_accuracy'])})"


def _place(network: dict, report: dict) -> str:
    return f"{title_of(network, report)} ({listed(network['transfer'], network['member'])})"


def seeds_needed(planned: Sequence[dict], report: dict) -> list[str]:
    """What a table of `power.plan` comes to, what it rests on, and which comparisons it lacks."""
    known = {_pair(one) for one in planned}
    lacking: dict[str, list[str]] = {}
    for one in report["comparisons"]:
        if one["metric"] == "accuracy" and _pair(one) not in known:
            why = "too few pairs of seeds" if one["std"] is None else "the pilot's seeds do not differ"
            lacking.setdefault(why, []).append(f"{one['a']} - {one['b']} ({transfers_of(one)})")
    without = [f"Not planned for, {why}: {', '.join(pairs)}." for why, pairs in lacking.items()]
    return without + (_seeds_needed(planned) if planned else ["Nothing can be planned; train more seeds."])


def _pair(one: dict) -> tuple[str, ...]:
    return one["a"], one["a_transfer"], one["b"], one["b_transfer"], one["architecture"]


def _seeds_needed(planned: Sequence[dict]) -> list[str]:
    seeds = min(one["n"] for one in planned)
    bound = f"the {100 * power.CONFIDENCE:g} % upper bound of the standard deviation"
    rests = f"Planned for {bound}, for a few seeds say little of it."
    if seeds < power.FEW_SEEDS:
        rests = (
            f"{seeds} seeds say next to nothing of the noise of one comparison: all of a transfer set are "
            f"taken to be equally noisy, and planned for is {bound} of them together; more seeds have a "
            "lower one."
        )
    wanted = [one["to_decide"] for one in planned]
    if None in wanted:
        return [rests, "Some would take too many seeds for any budget; look at report.margin."]
    more = max(0, max(wanted) - seeds)
    each = {
        (one[side], one[f"{side}_transfer"], one["architecture"]): one[f"seconds_{side}"]
        for one in planned
        for side in "ab"
    }
    return [
        rests,
        f"{max(wanted):,} seeds would decide every comparison, each four times in five: {more:,} more of "
        f"{len(each)} rows, about {count(more * sum(each.values()))} s of training.",
    ]


def _seeds_added(report: dict) -> list[str]:
    """Which comparisons of accuracies were decided, at how many seeds, and which were not."""
    if not bears_looking(report):
        return []
    tested = power.to_decide(report["comparisons"])
    if not tested:
        return []
    decided: dict[int | None, list[str]] = {}
    for one in tested:
        pair = f"{one['a']} - {one['b']} ({listed(one['family'], model_of(one, report))})"
        decided.setdefault(one["decided_at"], []).append(pair)
    undecided = decided.pop(None, [])
    parts = [f"Decided with {seeds}: {', '.join(pairs)}." for seeds, pairs in sorted(decided.items())]
    parts += [f"Not decided: {', '.join(undecided)}."] if undecided else []
    most = max(one["n"] for one in tested)
    return [
        f"Seeds were added until all was decided or no more were allowed, {most} in all. {' '.join(parts)}"
    ]
