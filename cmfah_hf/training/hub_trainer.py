"""A `Trainer` whose model goes to the Hub as `cmfah push` brings it there."""

from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmfah_hf.atomic import write_text
from cmfah_hf.errors import HubError
from cmfah_hf.training.resuming import ResumingTrainer

if TYPE_CHECKING:
    from cmfah_hf.hub import PushedModel


class HubTrainer(ResumingTrainer):
    """The hooks of `Trainer` for the Hub, over `push_model`: the finished model in one commit, and no pickle.

    With `push_to_hub` in its arguments the repository is made when the trainer is, so that a token that may not write
    is known before the first step and not after the last.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository `hub_model_id`, if it is not there.

        Raises:
            HubError: If no id is given, or the Hub refuses it.
        """
        if not self.is_world_process_zero():
            return
        from cmfah_hf.hub.publishing import make_repository

        self.hub_model_id = self._repo_id()
        private = self.args.hub_private_repo if private is None else private
        make_repository(self.hub_model_id, "model", bool(private), token or self.args.hub_token)
        self.push_in_progress = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent's, but nothing is pushed: `push_to_hub` is there for that."""
        super().save_model(output_dir, _internal_call=True)

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> "PushedModel | Future[PushedModel] | None":
        """Saves the model to `output_dir` and puts what is there on the Hub, in one commit, with its card.

        Args:
            commit_message: The commit's title.
            blocking: False: it goes on in a thread, and a future is given.
            token: Default: `hub_token`, else that of `HF_TOKEN` or of `hf auth login`.
            revision: The branch. Default: `hub_revision`, else the main one.
            private: Whether the repository is to be private. Default: `hub_private_repo`.
            **kwargs: Further arguments of `push_model`, such as `license` or `images_index`.

        Returns:
            What `push_model` gives; None in the processes beside the main one.

        Raises:
            HubError: As `push_model`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        kwargs = {"metrics": self._figures(), **kwargs}
        settings = {"message": commit_message, "token": token, "revision": revision, "private": private, **kwargs}
        if blocking:
            return self.push_finished(Path(self.args.output_dir), **settings)
        from huggingface_hub import HfApi

        return HfApi().run_as_future(self.push_finished, Path(self.args.output_dir), **settings)

    def push_finished(self, folder: Path, **kwargs: Any) -> "PushedModel":
        """Puts a finished folder on the Hub as the arguments say: `hub_model_id`, its token, branch and privacy."""
        from cmfah_hf.hub import push_model

        given = {name: value for name, value in kwargs.items() if value is not None}
        defaults = {
            "token": self.args.hub_token,
            "revision": self.args.hub_revision,
            "private": bool(self.args.hub_private_repo),
            "progress": not self.args.disable_tqdm,
        }
        return push_model(folder, self._repo_id(), **{**defaults, **given})

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
        """Writes the model's card as `README.md` into `output_dir`, where the model has been saved.

        A push takes a card that is there as it stands. `tasks`, `dataset_tags` and `dataset_args` are the parent's and
        say nothing here: the card knows its task, and the data from the run.
        """
        if not self.is_world_process_zero():
            return
        from cmfah_hf.data.dataset_card import CARD_NAME
        from cmfah_hf.hub.finished_run import read_run
        from cmfah_hf.hub.model_card import make_model_card

        folder = Path(self.args.output_dir)
        given = dataset[0] if isinstance(dataset, list) and dataset else dataset
        run = read_run(folder, metrics=self._figures())
        card = make_model_card(
            run,
            self.args.hub_model_id or model_name or folder.name,
            license=license,
            dataset_id=given or None,
            language=language,
            tags=[tags] if isinstance(tags, str) else tags or (),
            base_model=finetuned_from,
        )
        write_text(folder / CARD_NAME, str(card), HubError)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: checkpoints stay where they are."""

    def _repo_id(self) -> str:
        repo_id = self.args.hub_model_id
        if repo_id is None:
            raise HubError("push_to_hub needs to know where to: give --hub_model_id owner/name.")
        return repo_id

    def _figures(self) -> dict[str, Any]:
        """What this trainer knows of its run, for a folder without `metrics.json`."""
        config = self.model.config
        known = {
            "hash_bits": config.hash_bits,
            "seed": self.args.seed,
            "validation": self.state.best_metric,
            "epoch": self.state.epoch,
        }
        return {name: value for name, value in known.items() if value is not None}
