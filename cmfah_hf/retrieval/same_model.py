"""The check that an index holds codes of the model that searches it."""

from cmfah_hf.errors import HashIndexError


def check_same_model(made_by: str | None, ours: str, index: str) -> None:
    """Rejects an index whose codes another model made. An index without a fingerprint is accepted."""
    if made_by is not None and made_by != ours:
        raise HashIndexError(
            f"{index} holds codes of another model (fingerprint {made_by[:8]}; this model: {ours[:8]}), and codes of "
            "different models cannot be compared; take the model that made it, or make a new index. If the codes are "
            "known to fit, pass any_model=True (--any-model)."
        )
