"""All functions of this folder in one small run. The files are looked up beside this one.

python -m mtkd_jax.main --config=examples/own.py --workdir=runs/own
"""

from mtkd_jax import config as configuration


def get_config():
    config = configuration.default()
    config.plan = "plans.py:plain"
    config.data.source = "sources.py:stripes(noise=0.8)"
    config.data.augment.own = ("augmentations.py:fade(least=0.8)",)
    config.model.name = "networks.py:narrow(width=8)"
    config.teachers.num_members = 3
    config.train.epochs = 6
    config.train.batch_size = 32
    config.train.schedule = "schedules.py:halved(times=2)"
    config.fusion.rules = ("mean_probs", "rules.py:least")
    config.students.modes = ("mimic_all", "methods.py:smoothed(share=0.2)")
    config.students.alphas = (0.5,)
    config.students.num_seeds = 2
    config.report.metrics = ("metrics.py:cost(miss=10.0)",)
    return config
