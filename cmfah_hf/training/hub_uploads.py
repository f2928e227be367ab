"""The uploads of a trainer: its model goes to the Hub as by `cmfah push`, in one commit and without pickles."""

from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from cmfah_hf.atomic import write_text
from cmfah_hf.errors import HubError

if TYPE_CHECKING:
    from cmfah_hf.hub import PushedModel


class HubTrainer(Trainer):
    """A `Trainer` that creates repositories, writes model cards and pushes as the rest of the package does."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates the repository `hub_model_id`, if it does not exist.

        Raises:
            HubError: If no id is given, or the Hub refuses it.
        """
        from cmfah_hf.hub.publishing import make_repository

        if self.is_world_process_zero():
            self.hub_model_id = self._repo_id()  # type: ignore[assignment]  # the parent's begins as None
            self.push_in_progress = None
            private = self.args.hub_private_repo if private is None else private
            make_repository(self._repo_id(), "model", bool(private), token or self.args.hub_token)

    def _repo_id(self) -> str:
        if self.args.hub_model_id is None:
            raise HubError("push_to_hub needs a repository; give --hub_model_id owner/name.")
        return self.args.hub_model_id

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent's, but nothing is pushed: `push_to_hub` does that."""
        super().save_model(output_dir, _internal_call=True)

    def push_folder(self, folder: Path, **kwargs: Any) -> "PushedModel":
        """Pushes a finished folder. Defaults of arguments that are missing or None come from the training arguments.

        Raises:
            HubError: As `push_model`.
        """
        from cmfah_hf.hub import push_model

        defaults = {
            "token": self.args.hub_token,
            "revision": self.args.hub_revision,
            "private": bool(self.args.hub_private_repo),
            "progress": not self.args.disable_tqdm,
        }
        given = {name: value for name, value in kwargs.items() if value is not None}
        return push_model(folder, self._repo_id(), **{**defaults, **given})

    def push_to_hub(  # type: ignore[override]  # it returns what `push_model` returns
        self, commit_message: str | None = None, blocking: bool = True, **kwargs: Any
    ) -> "PushedModel | Future[PushedModel] | None":
        """Saves the model to `output_dir` and pushes it, in one commit, with its card.

        Args:
            commit_message: The title of the commit.
            blocking: False: pushes in a thread and returns a future.
            **kwargs: Further arguments of `push_model`, such as `license` or `images_index`. Defaults of `token`,
                `revision` and `private`: `hub_token`, `hub_revision` and `hub_private_repo`.

        Returns:
            The result of `push_model`; None in all processes but the main one.

        Raises:
            HubError: As `push_model`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        settings = {"metrics": self._figures(), **kwargs, "message": commit_message}
        folder = Path(str(self.args.output_dir))
        if blocking:
            return self.push_folder(folder, **settings)
        from huggingface_hub import HfApi

        return HfApi().run_as_future(self.push_folder, folder, **settings)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes the model card as `README.md` into `output_dir`, where the model has been saved.

        A push does not change an existing card. `tasks`, `dataset_tags` and `dataset_args` are not used: the card names
        its task, and takes the data from the run.
        """
        if not self.is_world_process_zero():
            return
        from cmfah_hf.data.dataset_card import CARD_NAME
        from cmfah_hf.hub.finished_run import read_run
        from cmfah_hf.hub.model_card import make_model_card

        folder = Path(str(self.args.output_dir))
        given = dataset[0] if isinstance(dataset, list) and dataset else dataset
        card = make_model_card(
            read_run(folder, metrics=self._figures()),
            self.args.hub_model_id or model_name or folder.name,
            dataset_id=given if isinstance(given, str) and given else None,
            tags=[tags] if isinstance(tags, str) else tags or (),
            license=license,
            language=language,
            base_model=finetuned_from,
        )
        write_text(folder / CARD_NAME, str(card), HubError)

    def _figures(self) -> dict[str, Any]:
        """The figures of the run so far, for a folder without `metrics.json`."""
        known = {
            "hash_bits": getattr(self.accelerator.unwrap_model(self.model).config, "hash_bits", None),
            "seed": self.args.seed,
            "validation": self.state.best_metric,
            "epoch": self.state.epoch,
        }
        return {name: value for name, value in known.items() if value is not None}
