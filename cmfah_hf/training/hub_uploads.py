"""The uploads of a trainer: its model goes to the Hub as by `cmfah push`, in one commit and without pickles."""

from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmfah_hf.atomic import write_text
from cmfah_hf.errors import HubError

if TYPE_CHECKING:
    from cmfah_hf.hub import PushedModel


class HubUploads:
    """The repository of a trainer's model, as the trainer's arguments name it, its card and its pushes."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    @property
    def repo_id(self) -> str:
        """The repository, as `owner/name`; `HubError` if the arguments name none."""
        repo_id = self.trainer.args.hub_model_id
        if repo_id is None:
            raise HubError("push_to_hub needs a repository; give --hub_model_id owner/name.")
        return repo_id

    def make_repository(self, token: str | None, private: bool | None) -> None:
        """Creates the repository, if it does not exist; `HubError` if no id is given, or the Hub refuses it."""
        from cmfah_hf.hub.publishing import make_repository

        args = self.trainer.args
        private = args.hub_private_repo if private is None else private
        make_repository(self.repo_id, "model", bool(private), token or args.hub_token)

    def push(self, folder: Path, **kwargs: Any) -> "PushedModel":
        """Pushes a finished folder. Defaults of arguments that are missing or None come from the training arguments.

        Raises:
            HubError: As `push_model`.
        """
        from cmfah_hf.hub import push_model

        args = self.trainer.args
        given = {name: value for name, value in kwargs.items() if value is not None}
        defaults = {
            "token": args.hub_token,
            "revision": args.hub_revision,
            "private": bool(args.hub_private_repo),
            "progress": not args.disable_tqdm,
        }
        return push_model(folder, self.repo_id, **{**defaults, **given})

    def push_saved(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> "PushedModel | Future[PushedModel] | None":
        """Saves the trainer's model to its `output_dir` and pushes it, in one commit, with its card.

        Args:
            commit_message: The title of the commit.
            blocking: False: pushes in a thread and returns a future.
            token: Default: `hub_token`, else the token of `HF_TOKEN` or `hf auth login`.
            revision: The branch. Default: `hub_revision`, else `main`.
            private: Whether to create a private repository. Default: `hub_private_repo`.
            **kwargs: Further arguments of `push_model`, such as `license` or `images_index`.

        Returns:
            The result of `push_model`; None in all processes but the main one.

        Raises:
            HubError: As `push_model`.
        """
        trainer = self.trainer
        trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
        trainer.save_model()
        if not trainer.is_world_process_zero():
            return None
        kwargs = {"metrics": self.figures(), **kwargs}
        settings = {"message": commit_message, "token": token, "revision": revision, "private": private, **kwargs}
        folder = Path(str(trainer.args.output_dir))
        if blocking:
            return self.push(folder, **settings)
        from huggingface_hub import HfApi

        return HfApi().run_as_future(self.push, folder, **settings)

    def write_card(
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

        A push does not change an existing card. The arguments are those of `Trainer.create_model_card`; `tasks`,
        `dataset_tags` and `dataset_args` are not used: the card names its task, and takes the data from the run.
        """
        if not self.trainer.is_world_process_zero():
            return
        from cmfah_hf.data.dataset_card import CARD_NAME
        from cmfah_hf.hub.finished_run import read_run
        from cmfah_hf.hub.model_card import make_model_card

        args = self.trainer.args
        folder = Path(str(args.output_dir))
        given = dataset[0] if isinstance(dataset, list) and dataset else dataset
        card = make_model_card(
            read_run(folder, metrics=self.figures()),
            args.hub_model_id or model_name or folder.name,
            dataset_id=given if isinstance(given, str) and given else None,
            tags=[tags] if isinstance(tags, str) else tags or (),
            license=license,
            language=language,
            base_model=finetuned_from,
        )
        write_text(folder / CARD_NAME, str(card), HubError)

    def figures(self) -> dict[str, Any]:
        """The figures of the run so far, for a folder without `metrics.json`."""
        trainer = self.trainer
        known = {
            "hash_bits": trainer.pretraining.config.hash_bits,
            "seed": trainer.args.seed,
            "validation": trainer.state.best_metric,
            "epoch": trainer.state.epoch,
        }
        return {name: value for name, value in known.items() if value is not None}
