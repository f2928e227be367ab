"""Training and evaluation on images with several captions."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cmfah_hf.data import load_image_text
from cmfah_hf.evaluation import PAIR_METRICS, RANKINGS, RetrievalEvaluator
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import train
from cmfah_hf.training.evaluate import evaluate_folder, split_figures


def captions_of(number, text):
    """One to three captions; the words of all are those of the text, in groups with words of their own."""
    words = text.split()
    return [f"photo of {' '.join(words[place::2])}" for place in range(2)] + [f"the {text}"] * (number % 2)


@pytest.fixture
def captioned(with_captions):
    """The scenes with lists of captions instead of texts."""
    return with_captions(captions_of)


@pytest.mark.parametrize("expand", ["false", "true"])
def test_a_run_measures_all_captions(run_of, captioned, tmp_path, expand):
    metrics = train(run_of("--expand", expand, data={"dataset": str(captioned)}))
    queries = load_image_text(captioned, split="query")
    lists = queries["captions"][:]
    retriever = CrossMediaRetriever.from_pretrained(tmp_path / "out")
    images = retriever.encode_images(queries["image"])
    texts = retriever.encode_texts([caption for captions in lists for caption in captions])
    keys = np.repeat(np.arange(len(lists)), [len(captions) for captions in lists])
    evaluator = RetrievalEvaluator(PAIR_METRICS, (1, 5, 10), RANKINGS)
    expected = evaluator.pairs(images, texts, np.arange(len(lists)), keys)
    assert metrics["pairs"] == pytest.approx(expected, abs=1e-6)
    assert (metrics["pairs"]["images"], metrics["pairs"]["texts"]) == (16, 16 * 2 + 8)
    by_labels, of_pairs = split_figures(evaluate_folder(str(tmp_path / "out"), str(captioned)))
    assert by_labels == pytest.approx(metrics["query"], abs=1e-6)
    assert of_pairs == pytest.approx(metrics["pairs"], abs=1e-6)
    # The vocabulary has the words of all captions.
    known = retriever.processor.tokenizer.get_vocab()
    assert {"photo", "of", "the"} <= set(known)
    if expand == "true":
        assert {"photo", "the"} <= set(GraphExpander.load(tmp_path / "out").graph.vocabulary)


@pytest.mark.slow
def test_a_streamed_run_measures_all_captions(run_of, captioned):
    metrics = train(run_of("--streaming", "true", data={"dataset": str(captioned)}))
    assert (metrics["pairs"]["images"], metrics["pairs"]["texts"]) == (16, 40)


def with_captions(pairs):
    rows = [[f"{text} {word}" for word in ("sun", "sea", "red")] for text in pairs["text"]]
    return pairs.add_column("captions", rows)


@pytest.fixture
def read_texts(monkeypatch, processor):
    """The texts that a processor reads, in their order."""
    texts = []
    call = type(processor).__call__

    def noted(self, *args, text=None, **kwargs):
        texts.extend(text or [])
        return call(self, *args, text=text, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", noted)
    return texts


def test_epochs_draw_other_captions_and_evaluation_reads_the_first(make_trainer, make_pairs, read_texts):
    pairs = with_captions(make_pairs(24))
    trainer = make_trainer(
        train=pairs, validation=with_captions(make_pairs(9, seed=1)), num_train_epochs=3, codes_update="batch"
    )
    trainer.train()
    assert len(read_texts) == 72
    epochs = [set(read_texts[start : start + 24]) for start in (0, 24, 48)]
    assert set.union(*epochs) == {caption for captions in pairs["captions"] for caption in captions}
    assert len({text.split()[-1] for text in epochs[0]}) == 3
    read_texts.clear()
    trainer.evaluate()
    assert {text.split()[-1] for text in read_texts} == {"sun"}


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_training_draws_the_same_captions(make_trainer, make_model, make_pairs, tmp_path, streaming):
    pairs = with_captions(make_pairs(24))

    def trained(folder, **arguments):
        trainer = make_trainer(
            make_model(),
            pairs.with_format(None).to_iterable_dataset(num_shards=2) if streaming else pairs,
            output_dir=str(tmp_path / folder),
            num_train_epochs=2,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=9,
        )
        trainer.train(**arguments)
        trainer.save_model()
        return load_file(tmp_path / folder / "model.safetensors")

    whole = trained("whole")
    for step in (2, 3, 4):  # before, at and after the end of an epoch
        folder = f"broken-at-{step}"
        checkpoint = shutil.copytree(
            tmp_path / "whole" / f"checkpoint-{step}", tmp_path / folder / f"checkpoint-{step}"
        )
        resumed = trained(folder, resume_from_checkpoint=str(checkpoint))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), step
