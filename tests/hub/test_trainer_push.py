"""The trainer's own hooks for the Hub, and a run that pushes itself."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from cmfah_hf.errors import HubError
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.training import CMFAHTrainer, CMFAHTrainingArguments, parse_run, train


@pytest.fixture
def trainer(trained, here, tmp_path, monkeypatch):
    """A trainer of the untrained tiny model with an empty folder."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    args = CMFAHTrainingArguments(
        output_dir=str(tmp_path / "out"), use_cpu=True, hub_model_id="org/model", disable_tqdm=True, eval_strategy="no",
        load_best_model_at_end=False,
    )  # fmt: skip
    model = CMFAHForPreTraining.from_pretrained(trained.folder)
    return CMFAHTrainer(model, args, processing_class=CMFAHProcessor.from_pretrained(trained.folder))


def test_push_to_hub_saves_and_pushes(trainer, hub, trained):
    done = trainer.push_to_hub(commit_message="Mine", license="mit", tags=["tried"])
    assert hub.history("org/model", "model") == ["Mine", "initial commit"]
    files = hub.files("org/model", "model")
    assert set(files) == {*done.files, ".gitattributes"}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth")) or name.startswith("training_args")]
    card = ModelCard.load("org/model")
    assert (card.data.license, card.data.model_name) == ("mit", "model")
    assert "tried" in card.data.tags
    expected = CMFAHModel.from_pretrained(trained.folder).state_dict()
    found = CMFAHModel.from_pretrained("org/model").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    again = trainer.push_to_hub(blocking=False, revision="v2", license="mit", tags=["tried"]).result(60)
    assert again.revision == "v2"
    assert set(hub.files("org/model", "model", "v2")) == set(files)


def test_create_model_card_writes_it_next_to_the_model(trainer, tmp_path):
    trainer.save_model()
    trainer.create_model_card(license="mit", dataset="org/scenes", tags="tried", language="en")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.datasets, card.data.language) == ("mit", ["org/scenes"], "en")
    assert 'CrossMediaRetriever.from_pretrained("org/model")' in card.text


def test_saving_does_not_push(trainer, hub):
    trainer.args.push_to_hub = True
    trainer.save_model()
    assert hub.log == []


def settings(trained, folder, *further):
    one_epoch = ["--num_train_epochs", "1", "--output_dir", str(folder), "--push_to_hub", "true"]
    return parse_run(trained.config, [*one_epoch, *further])


def test_a_run_pushes_its_result(trained, hub, here, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    given = ["--hub_model_id", "org/run", "--hub_token", "hf_writer", "--hub_private_repo", "true"]
    metrics = train(settings(trained, tmp_path / "run", *given))
    assert hub.history("org/run", "model") == ["Upload the model", "initial commit"]
    assert hub.store.repositories["model", "org/run"].private
    files = hub.files("org/run", "model")
    assert json.loads(files["metrics.json"]) == metrics
    assert not [name for name in files if "checkpoint" in name or name.endswith((".pt", ".pth", ".bin"))]
    for content in [*files.values(), *(p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file())]:
        assert b"hf_writer" not in content


def test_a_read_only_token_is_refused_before_the_first_step(trained, hub, here, tmp_path):
    with pytest.raises(HubError, match="the token may not write there"):
        train(settings(trained, tmp_path / "run", "--hub_model_id", "org/run", "--hub_token", "hf_stranger"))
    with pytest.raises(HubError, match="give --hub_model_id"):
        train(settings(trained, tmp_path / "run", "--hub_token", "hf_writer"))
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    with pytest.raises(ValueError, match="only the finished model goes to the Hub"):
        settings(trained, tmp_path / "run", "--hub_strategy", "every_save")
