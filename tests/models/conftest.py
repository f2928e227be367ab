"""Models of a few thousand weights, batches for them, and a fixture that fails when transformers logs or warns."""

import gc
import logging
import warnings
from contextlib import contextmanager

import pytest
import torch
from settings import split
from transformers import ResNetConfig

from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHConfig

TINY = {
    "image_size": 32,
    "vocab_size": 30,
    "word_dim": 12,
    "text_filters": 6,
    "text_kernel_sizes": [1, 2, 3, 5],
    "hidden_size": 16,
    "num_concepts": 7,
    "hash_bits": 16,
    "num_labels": 5,
}


@pytest.fixture(autouse=True)
def one_thread():
    """For models this small, a second thread costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_config():
    """A function from settings to a tiny configuration: ResNet, 4 x 4 regions, 16 bits, two kinds of kernels."""

    def make(**settings):
        if "backbone" not in settings:
            backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
            settings = {"backbone_config": backbone, **settings}
        return CMFAHConfig(**{**TINY, **settings})

    return make


@pytest.fixture(scope="session")
def make_model(make_config):
    """A function from a class and settings to a tiny model in which every weight matters (norms and biases too)."""

    def make(cls, **settings):
        torch.manual_seed(0)
        if issubclass(cls, CMFAHForPreTraining):
            of_towers, objective = split(settings)
            model = cls(make_config(**of_towers), objective).eval()
        else:
            model = cls(make_config(**settings)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
                if "concepts" in name or "embed_tokens" in name:  # a fresh table is nearly zero: make attention sharp
                    parameter.add_(torch.randn(parameter.shape))
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.add_(0.1 * torch.rand(buffer.shape))
        return model

    return make


@pytest.fixture(scope="session")
def batch():
    """Four pairs: a full text, one with padding, one with an unknown word inside, an empty one."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.tensor([[5, 9, 3, 7, 2, 8], [4, 6, 9, 0, 0, 0], [3, 1, 8, 2, 1, 0], [0, 0, 0, 0, 0, 0]])
    return {
        "pixel_values": torch.randn(4, 3, 32, 32, generator=generator),
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
    }


@pytest.fixture(scope="session")
def labels():
    return torch.tensor([[1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]])


@pytest.fixture(scope="session")
def pretraining(make_model):
    return make_model(CMFAHForPreTraining)


@pytest.fixture(scope="session")
def pretraining_folder(pretraining, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    pretraining.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(pretraining, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pretraining.cmfah.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def silence():
    """A context that fails on any warning or logged line."""

    @contextmanager
    def listen():
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        loggers = logging.getLogger(), logging.getLogger("transformers")
        for logger in loggers:
            logger.addHandler(handler)
        with warnings.catch_warnings():  # collect garbage of earlier tests first
            warnings.simplefilter("ignore")
            gc.collect()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
        assert lines + [str(warning.message) for warning in caught] == []

    return listen
