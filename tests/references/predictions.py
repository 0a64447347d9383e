"""A made-up finished run: networks that are right as often as we like, and their learning curves."""

from __future__ import annotations

import itertools

import numpy as np

from mtkd_jax.config import row_of
from mtkd_jax.runs.predictions import Group, Predictions

# name: (role, spread of the network's own error; the smaller, the better the network)
STUDENTS = {
    "output_avg": ("student", 1.1),
    "loss_avg": ("student", 1.1),
    "mimic_all": ("student", 0.5),
    "vote": ("student", 1.6),
    "supernet": ("student", 1.4),
    "baseline": ("baseline", 1.5),
    "control": ("control", 1.4),
}


def make(
    *,
    seed: int = 0,
    num_teachers: int = 5,
    num_seeds: int = 5,
    num_val: int = 120,
    num_test: int = 300,
    num_classes: int = 10,
    transfers: tuple[str, ...] = ("labelled", "unlabelled"),
    students: dict[str, tuple[str, float]] = STUDENTS,
    rules: tuple[str, ...] = ("mean_probs", "mean_logits", "plurality", "borda"),
    models: dict[str, float] = {"mlp": 1.0},  # noqa: B006
) -> Predictions:
    """A run whose networks see the truth through an error they share and an error of their own.

    `models` are the architectures of students; a student of half the size has its own error twice as large.
    """
    rng = np.random.default_rng(seed)
    labels = {
        "val": rng.integers(num_classes, size=num_val),
        "test": rng.integers(num_classes, size=num_test),
    }
    truth = {split: np.eye(num_classes)[of_split] for split, of_split in labels.items()}
    shared = {split: rng.normal(size=of_split.shape) for split, of_split in truth.items()}

    def logits(num_members: int, spread: float) -> dict[str, np.ndarray]:
        return {
            split: np.stack(
                [
                    (
                        8 * truth[split] + 2.5 * shared[split] + spread * rng.normal(size=truth[split].shape)
                    ).astype(np.float32)
                    for _ in range(num_members)
                ]
            )
            for split in truth
        }

    groups = [
        Group(
            key="teachers/mlp",
            name="mlp",
            role="teacher",
            architecture="mlp",
            method="",
            transfer="",
            alpha=None,
            temperature=None,
            members=tuple(f"teacher {k}" for k in range(num_teachers)),
            params=9_000,
            flops=18_000.0,
            latency_ms={"1": 0.11, "256": 0.9},
            train_seconds=5.5,
            train_flops=num_teachers * 5.4e9,
            **logits(num_teachers, 1.8),
        )
    ]
    for (model, size), transfer in itertools.product(models.items(), transfers):
        for name, (role, spread) in students.items():
            worse = 0.3 if transfer == "labelled" and role == "student" else 0.0
            own = logits(num_seeds, (spread + worse) / size)
            heads = num_teachers if name in ("mimic_all", "control") else 1
            groups.append(
                Group(
                    key=f"students/{transfer}/{row_of(name, model if len(models) > 1 else '')}",
                    name=name,
                    role=role,
                    architecture=model,
                    method=name,
                    transfer=transfer,
                    alpha=0.0 if role == "student" else 1.0,
                    temperature=2.0 if role == "student" else 1.0,
                    members=tuple(f"seed {s}" for s in range(num_seeds)),
                    common_test=own["test"] if role == "student" else None,
                    grid=tuple({"alpha": a, "temperature": 2.0, "val_nll": 0.3 + a} for a in (0.0, 0.25)),
                    params=round(size * (8_300 + 700 * heads)),
                    flops=size * (16_600.0 + 1_400 * heads),
                    latency_ms={"1": 0.1, "256": 0.8},
                    train_seconds=3.0,
                    **own,
                )
            )
    return Predictions(
        dataset="digits",
        class_names=tuple(str(c) for c in range(num_classes)),
        sizes={"train": 100, "unlabelled": 1100, "val": num_val, "test": num_test},
        val_labels=labels["val"].astype(np.int32),
        test_labels=labels["test"].astype(np.int32),
        val_index=np.arange(num_val, dtype=np.int32),
        test_index=np.arange(num_test, dtype=np.int32),
        rules=rules,
        groups=tuple(groups),
        common_alpha=0.25,
        val_groups=np.arange(num_val),
        notes=("A note of the run.",),
    )


def curves(predictions: Predictions, num_epochs: int = 30) -> list[dict]:
    """What metrics.jsonl would hold of every member of `predictions`, and of a grid point nobody chose."""
    rng = np.random.default_rng(1)
    records = []
    for group in predictions.groups:
        if group.role == "teacher":
            stage, members = "teachers-mlp", group.members
        else:
            stage = f"students-{group.transfer}-output_avg"
            cells = (f"a={group.alpha:g} T={group.temperature:g}", "a=0.9 T=9")
            students = [one for one in predictions.groups if one.role == "student"]
            several = len({one.architecture for one in students}) > 1
            name = row_of(group.name, group.architecture if several else "")
            members = [f"{name} {cell} {seed}" for cell in cells for seed in group.members]
        for member in members:
            own = 0.05 * rng.normal()
            for epoch in range(1, num_epochs + 1):
                falling = np.exp(-epoch / 8)
                at = {"stage": stage, "epoch": epoch, "step": 9 * epoch, "member": member, "wall": 0.0}
                nll = 0.3 + 2 * falling + own + 0.02 * rng.normal()
                records.append({**at, "name": "val_nll", "value": float(nll)})
                records.append({**at, "name": "val_accuracy", "value": float(0.93 - 0.7 * falling + own / 5)})
    return records
