"""Connects this process to a Hub, as `HubServer.environment` does for a new process."""

from pathlib import Path

import datasets
import pytest

from hub_server.server import HubServer


def use_hub(server: HubServer, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes this process use a Hub, with its caches below a folder, as the environment does for a new one."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _cache_assets
    from transformers.utils import hub

    settings = {"HF_HUB_CACHE": str(folder / "hub-cache"), "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}
    for name, value in settings.items():
        patch.setattr(constants, name, value)
    patch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(hub, "_hf_api", None)  # it stores the address from its creation
    patch.setattr(_cache_assets, "HF_ASSETS_CACHE", str(folder / "assets"))
    patch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
