r"""What a student keeps of the ensemble, in accuracy and in all else that an ensemble is used for.

Of every quantity q, with the teachers fused by mean_probs:

$$\mathrm{share} = \frac{q(\text{student}) - q(\text{baseline})}{q(\text{ensemble}) - q(\text{baseline})}$$

0 is no better than the network that was trained without teachers, 1 as good as the ensemble. Where the
ensemble is not better than the baseline by more than noise there is nothing to be kept, and of one seed
nobody knows: the share is not defined. The interval resamples seeds, the same ones of student and baseline,
and images, the same ones of all three (1 000 times; see `intervals.percentiles`). Each quantity comes as
terms, one an image, whose mean it is (see `metrics`), so that all are resampled alike. Temperatures are
fitted on validation, one a network, and held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtkd_jax.results import intervals, lookup, metrics
from mtkd_jax.runs.predictions import Group, Predictions

NUM_RESAMPLES = 1000
ROUNDING = 1e-6  # of float32 logits; a gap within it is none
BLOCK = 100  # resamples that are floats at a time: bytes are kept
COMPARED = ("student", "average", "control")


class Quantity(NamedTuple):
    """One of the numbers that are compared, as tables and plots call it."""

    title: str
    higher_is_better: bool
    scale: int  # 100: in per cent


QUANTITIES = {
    "accuracy": Quantity("accuracy %", True, 100),
    "nll": Quantity("NLL", False, 1),
    "nll_scaled": Quantity("NLL, scaled", False, 1),
    "ece": Quantity("ECE %", False, 100),
    "ece_scaled": Quantity("ECE %, scaled", False, 100),
    "aurc": Quantity("AURC %", False, 100),
    "shift_accuracy": Quantity("accuracy % under shift", True, 100),
    "shift_nll": Quantity("NLL under shift", False, 1),
    "shift_nll_scaled": Quantity("NLL, scaled, under shift", False, 1),
    "shift_ece": Quantity("ECE % under shift", False, 100),
    "shift_ece_scaled": Quantity("ECE %, scaled, under shift", False, 100),
    "shift_aurc": Quantity("AURC % under shift", False, 100),
    "ood_confidence": Quantity("OOD AUROC, confidence", True, 1),
    "ood_entropy": Quantity("OOD AUROC, entropy", True, 1),
    "ood_mutual": Quantity("OOD AUROC, mutual information", True, 1),
    "mutual": Quantity("mutual information", True, 1),
}


class PartLogits(NamedTuple):
    """What the members of a row say, or the ensemble as one member; None where it was not asked."""

    val: np.ndarray  # [S,V,C]
    test: np.ndarray  # [S,N,C]
    shifted: np.ndarray | None  # [S,6,N]
    outliers: np.ndarray | None  # [S,O,C]
    mutual: tuple[np.ndarray, np.ndarray] | None  # [S,N], [S,O]


class Terms(NamedTuple):
    """Terms of one quantity of S members: its value is the mean over images, of outliers alike."""

    test: np.ndarray  # [S,N]
    outliers: np.ndarray | None = None  # [S,O]


def numbers(predictions: Predictions) -> dict | None:
    """{"quantities", "corruptions", "strengths", "ood", "sections"}; None where no student has a baseline.

    "sections" has one for each baseline: {"transfer", "architecture", "gaps": {quantity: {"baseline",
    "ensemble", "difference", "ci95", "defined"}}, "rows": [{"name", "role", "n", "temperature": mean over
    seeds, fitted on validation, "shares": {quantity: {"value", "share", "ci95"}}, "by_strength"}],
    "temperature", "by_strength": {"baseline", "ensemble"}}. "by_strength" is accuracy [L] under shift, None
    where nothing was shifted.
    """
    baselines = [group for group in predictions.groups if group.role == "baseline"]
    rows = {baseline.key: _rows_of(predictions, baseline) for baseline in baselines}
    if not any(rows.values()):
        return None
    draws = _draws(predictions)
    ensemble = _Resampled.of(_ensemble(predictions), predictions, draws)
    sections = [
        _section(predictions, baseline, rows[baseline.key], ensemble, draws)
        for baseline in baselines
        if rows[baseline.key]
    ]
    found = [name for name in QUANTITIES if any(name in section["gaps"] for section in sections)]
    return {
        "quantities": {name: QUANTITIES[name]._asdict() for name in found},
        "corruptions": list(predictions.corruptions),
        "strengths": list(predictions.strengths),
        "ood": predictions.ood,
        "sections": sections,
    }


def _rows_of(predictions: Predictions, baseline: Group) -> list[Group]:
    """The students of a baseline's images and architecture that share a seed with it."""
    return [
        group
        for group in predictions.groups
        if (group.transfer, group.architecture) == (baseline.transfer, baseline.architecture)
        if group.role in COMPARED and set(group.members) & set(baseline.members)
    ]


def _section(
    predictions: Predictions, baseline: Group, rows: list[Group], ensemble: _Resampled, draws: _Draws
) -> dict:
    base = _Resampled.of(_members(baseline), predictions, draws)
    gaps = {}
    for name in ensemble.values:
        if name not in base.values:
            continue
        of_baseline, of_ensemble = base.values[name].mean(), ensemble.values[name][0]
        difference = of_ensemble - of_baseline
        resampled = ensemble.resamples[name][:, 0] - base.over_seeds(name, range(base.num), draws)
        by_images = ensemble.resamples[name][:, 0] - base.resamples[name].mean(axis=1)
        freedom = _freedom(by_images, base.values[name], draws)
        interval = intervals.percentiles(resampled, difference, freedom)
        gaps[name] = {
            "baseline": of_baseline,
            "ensemble": of_ensemble,
            "difference": difference,
            "ci95": interval,
            "defined": base.num > 1 and _is_gained(interval, QUANTITIES[name]),
        }
    return {
        "transfer": baseline.transfer,
        "architecture": baseline.architecture,
        "gaps": gaps,
        "temperature": {"baseline": base.temperatures.mean(), "ensemble": ensemble.temperatures[0]},
        "by_strength": {
            "baseline": _by_strength(baseline.by_shift),
            "ensemble": _by_strength(
                None if predictions.ensemble_by_shift is None else predictions.ensemble_by_shift[None]
            ),
        },
        "rows": [_row(predictions, group, baseline, base, ensemble, gaps, draws) for group in rows],
    }


def _row(
    predictions: Predictions,
    group: Group,
    baseline: Group,
    base: _Resampled,
    ensemble: _Resampled,
    gaps: dict,
    draws: _Draws,
) -> dict:
    own = _Resampled.of(_members(group), predictions, draws)
    shared = [name for name in group.members if name in baseline.members]
    mine, theirs = ([each.members.index(name) for name in shared] for each in (group, baseline))
    shares = {}
    for name, gap in gaps.items():
        if name not in own.values:
            continue
        found = {"value": own.values[name].mean(), "share": None, "ci95": None}
        if gap["defined"]:
            of_base, of_ensemble = base.values[name][theirs].mean(), ensemble.values[name][0]
            share = (own.values[name][mine].mean() - of_base) / (of_ensemble - of_base)
            found["share"] = share
            of_bases = base.over_seeds(name, theirs, draws)
            gained = own.over_seeds(name, mine, draws) - of_bases
            to_gain = ensemble.resamples[name][:, 0] - of_bases
            some = to_gain != 0
            # How much of what varies is by images and how much by seeds: of gained - share * to_gain,
            # which is the share to first order.
            moved = own.resamples[name][:, mine] - (1 - share) * base.resamples[name][:, theirs]
            by_images = moved.mean(axis=1) - share * ensemble.resamples[name][:, 0]
            by_seeds = own.values[name][mine] - (1 - share) * base.values[name][theirs]
            if len(shared) > 1:
                freedom = _freedom(by_images, by_seeds, draws)
                found["ci95"] = intervals.percentiles(gained[some] / to_gain[some], share, freedom)
        shares[name] = found
    return {
        "name": group.name,
        "role": group.role,
        "transfer": group.transfer,
        "architecture": group.architecture,
        "n": len(group.members),
        "temperature": own.temperatures.mean(),
        "shares": shares,
        "by_strength": _by_strength(group.by_shift),
    }


def _is_gained(interval: intervals.Interval | None, quantity: Quantity) -> bool:
    """Whether the ensemble is the better one, by more than noise and rounding."""
    if interval is None:
        return False
    return interval[0] > ROUNDING if quantity.higher_is_better else interval[1] < -ROUNDING


def _freedom(by_images: np.ndarray, by_seeds: np.ndarray, draws: _Draws) -> float:
    """Degrees of freedom of a mean over seeds [S] that is `by_images` [R] as images are resampled."""
    num_images = draws.test.shape[1]
    if num_images < 2:
        return 0.0
    variance = float(np.var(by_images)) * num_images / (num_images - 1)
    return intervals.freedom_of(intervals.of_mean(by_seeds), (variance, num_images))


def _by_strength(by_shift: np.ndarray | None) -> list[float] | None:
    """Accuracy [L] under shift, over members and corruptions, of [S,6,Q,L]."""
    return None if by_shift is None else by_shift[:, 0].mean(axis=(0, 1)).tolist()


# --- terms --------------------------------------------------------------------------------------------


def _members(group: Group) -> PartLogits:
    mutual: tuple[np.ndarray, np.ndarray] | None = None
    if group.mutual is not None and group.mutual_outliers is not None:
        mutual = group.mutual, group.mutual_outliers
    elif group.outliers is not None:  # who keeps no members disagrees about nothing
        num_members, num_outliers, _ = group.outliers.shape
        mutual = np.zeros((num_members, group.test.shape[1])), np.zeros((num_members, num_outliers))
    return PartLogits(group.val, group.test, group.shifted, group.outliers, mutual)


def _ensemble(predictions: Predictions) -> PartLogits:
    """All teachers fused by mean_probs, as one member."""
    teachers = lookup.teachers(predictions)
    asked = [group.outliers for group in teachers if group.outliers is not None]
    logits = {split: lookup.teacher_logits(predictions, split) for split in ("val", "test")}
    if len(asked) == len(teachers):
        logits["outliers"] = np.concatenate(asked)
    fused = {split: said[None] for split, said in lookup.fuse("mean_probs", logits).items()}
    outliers, mutual = fused.get("outliers"), None
    if outliers is not None:
        of_test, of_outliers = (metrics.mutual_information(logits[one])[None] for one in ("test", "outliers"))
        mutual = of_test, of_outliers
    shifted = predictions.ensemble_shifted
    return PartLogits(
        fused["val"], fused["test"], None if shifted is None else shifted[None], outliers, mutual
    )


def _terms(said: PartLogits, temperatures: np.ndarray, labels: np.ndarray) -> dict[str, Terms]:
    """{quantity: its terms}, of what was asked."""
    each = [metrics.terms(one, labels, at) for one, at in zip(said.test, temperatures)]
    found = {name: Terms(np.stack([one[name] for one in each])) for name in metrics.TERMS}
    if said.shifted is not None:
        shifted = np.moveaxis(said.shifted.astype(np.float64), 1, 0)
        found |= {f"shift_{name}": Terms(one) for name, one in zip(metrics.TERMS, shifted)}
    if said.outliers is not None and said.mutual is not None:
        mutual, mutual_outliers = said.mutual
        found |= {
            "ood_confidence": _auroc(_doubt(said.test), _doubt(said.outliers)),
            "ood_entropy": _auroc(metrics.entropy(said.test), metrics.entropy(said.outliers)),
            "ood_mutual": _auroc(mutual, mutual_outliers),
            "mutual": Terms(np.asarray(mutual, np.float64)),
        }
    return found


def _doubt(logits: np.ndarray) -> np.ndarray:
    """Minus the log of the largest probability, which still tells apart what is rounded to 1."""
    logits = np.asarray(logits, np.float64)
    return np.logaddexp.reduce(logits, axis=-1) - logits.max(axis=-1)


def _auroc(inside: np.ndarray, outside: np.ndarray) -> Terms:
    return Terms(*map(np.stack, zip(*map(metrics.auroc_terms, inside, outside))))


# --- resampling ---------------------------------------------------------------------------------------


class _Draws(NamedTuple):
    """How often each image is drawn in each of R resamples, and lots by which seeds are."""

    test: np.ndarray  # [R,N]
    outliers: np.ndarray | None  # [R,O]
    lots: np.ndarray  # [R,most seeds] in [0,1)


def _draws(predictions: Predictions) -> _Draws:
    rng = np.random.default_rng(0)

    def counts(num: int) -> np.ndarray:
        drawn = (np.bincount(rng.integers(num, size=num), minlength=num) for _ in range(NUM_RESAMPLES))
        return np.stack([one.astype(np.uint8) for one in drawn])

    num_outliers = next((len(one.outliers[0]) for one in predictions.groups if one.outliers is not None), 0)
    most = max(len(group.members) for group in predictions.groups)
    return _Draws(
        counts(predictions.by_unit(predictions.test_labels).shape[-1]),
        counts(num_outliers) if num_outliers else None,
        rng.random((NUM_RESAMPLES, most)),
    )


class _Resampled(NamedTuple):
    """The quantities of S members, and what they are in each of R resamples of the images."""

    temperatures: np.ndarray  # [S]
    values: dict[str, np.ndarray]  # {quantity: [S]}
    resamples: dict[str, np.ndarray]  # {quantity: [R,S]}

    @classmethod
    def of(cls, said: PartLogits, predictions: Predictions, draws: _Draws) -> _Resampled:
        temperatures = np.array([metrics.fit_temperature(one, predictions.val_labels) for one in said.val])
        terms = _terms(said, temperatures, predictions.test_labels)
        values = {name: one.test.mean(axis=1) for name, one in terms.items()}
        resamples = {}
        for name, one in terms.items():
            resamples[name] = values[name] + _moved(draws.test, predictions.by_unit(one.test))
            if one.outliers is not None and draws.outliers is not None:
                resamples[name] += _moved(draws.outliers, one.outliers)
        return cls(temperatures, values, resamples)

    @property
    def num(self) -> int:
        return len(self.temperatures)

    def over_seeds(self, name: str, which: Sequence[int] | np.ndarray, draws: _Draws) -> np.ndarray:
        """Means [R] over as many of the members `which` as there are, drawn by the same lots for all."""
        which = np.asarray(which)
        drawn = which[(draws.lots[:, : len(which)] * len(which)).astype(int)]
        return np.take_along_axis(self.resamples[name], drawn, axis=1).mean(axis=1)


def _moved(counts: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """How far resamples [R,N] move the means of terms [S,N], [R,S]."""
    centred = (terms - terms.mean(axis=1, keepdims=True)).astype(np.float32).T
    blocks = (counts[start : start + BLOCK].astype(np.float32) for start in range(0, len(counts), BLOCK))
    return np.concatenate([block @ centred for block in blocks]).astype(np.float64) / counts.shape[1]
