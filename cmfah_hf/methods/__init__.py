"""Training methods: objectives, their settings and papers, and the models with an objective."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CMFAHDiscriminator": "discriminators",
        "CMFAHForPreTraining": "pretraining",
        "CMFAHForPreTrainingOutput": "outputs",
        "CMFAHObjective": "cmfah",
        "CMFAHObjectiveConfig": "cmfah",
        "Candidate": "closed_form.choice",
        "Choice": "closed_form.choice",
        "CodeFitter": "closed_form.choice",
        "HashProjection": "closed_form.projections",
        "Losses": "base",
        "Objective": "base",
        "ObjectiveConfig": "base",
        "Paper": "base",
        "Player": "base",
        "SCAHNForPreTraining": "pretraining",
        "SCAHNObjective": "scahn",
        "SCAHNObjectiveConfig": "scahn",
        "TrainingState": "base",
        "objective_class": "registry",
        "register_method": "registry",
        "registered_methods": "registry",
    },
)
