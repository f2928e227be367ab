"""Models with an objective, from settings of both in one dict."""

from typing import Any

from cmfah_hf.methods import ObjectiveConfig, objective_class
from cmfah_hf.methods.pretraining import PRETRAINING_MODELS, CMFAHForPreTraining


def split(settings: dict[str, Any], method: str = "cmfah") -> tuple[dict[str, Any], ObjectiveConfig]:
    """Settings of the towers, and those of the objective."""
    kind = objective_class(method).settings_class
    of_towers = {name: value for name, value in settings.items() if name not in kind.names()}
    return of_towers, kind(**{name: value for name, value in settings.items() if name in kind.names()})


def pretraining_model(method: str = "cmfah", **settings: Any) -> CMFAHForPreTraining:
    """A new model with an objective."""
    of_towers, objective = split(settings, method)
    model_class = PRETRAINING_MODELS[objective_class(method).model_type]
    return model_class(model_class.config_class(**of_towers), objective, method)
