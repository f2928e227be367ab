"""Training methods: objectives, their settings and papers, models with an objective, and shallow methods."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CCAITQ": "shallow.cca_itq",
        "CMFAHDiscriminator": "discriminators",
        "CMFAHForPreTraining": "pretraining",
        "CMFAHForPreTrainingOutput": "outputs",
        "CMFAHObjective": "cmfah",
        "CMFAHObjectiveConfig": "cmfah",
        "CMFH": "shallow.cmfh",
        "CMSSH": "shallow.cmssh",
        "Candidate": "closed_form.choice",
        "Choice": "closed_form.choice",
        "CodeFitter": "closed_form.choice",
        "FeatureMap": "shallow.maps",
        "HashProjection": "closed_form.projections",
        "Losses": "base",
        "Objective": "base",
        "ObjectiveConfig": "base",
        "Paper": "base",
        "Player": "base",
        "SCAHNForPreTraining": "pretraining",
        "SCAHNObjective": "scahn",
        "SCAHNObjectiveConfig": "scahn",
        "SCM": "shallow.scm",
        "SCRATCH": "shallow.scratch",
        "SePH": "shallow.seph",
        "ShallowHasher": "shallow.hasher",
        "TrainingState": "base",
        "hasher_class": "shallow.hasher",
        "objective_class": "registry",
        "register_method": "registry",
        "registered_methods": "registry",
    },
)
