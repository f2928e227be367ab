"""The common model and configuration tests of transformers, run on every model class of this package."""

import sys
import unittest
from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers import ResNetConfig, ViTImageProcessor

from cmfah_hf.methods import CMFAHDiscriminator, CMFAHForPreTraining, SCAHNForPreTraining
from cmfah_hf.models import (
    CMFAHConfig,
    CMFAHImageModel,
    CMFAHModel,
    CMFAHProcessor,
    CMFAHTextModel,
    SCAHNConfig,
    SCAHNImageModel,
    SCAHNModel,
    SCAHNTextModel,
)
from cmfah_hf.models.word_tokenizer import build_word_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
import common_checks

if not common_checks.AVAILABLE:
    pytest.skip(
        f"transformers' own tests are not at {common_checks.SOURCE}; `make test` fetches them", allow_module_level=True
    )

ConfigTester = common_checks.load("test_configuration_common").ConfigTester
ModelTesterMixin = common_checks.load("test_modeling_common").ModelTesterMixin
ProcessorTesterMixin = common_checks.load("test_processing_common").ProcessorTesterMixin


class CMFAHModelTester:
    """A model of a few thousand weights with its own backbone, and a batch for it."""

    input_names = ("pixel_values", "input_ids", "attention_mask")
    config_class = CMFAHConfig
    settings = {}

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        self.batch_size, self.seq_length, self.vocab_size = 3, 6, 40
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 16, 1, 1
        self.image_size, self.num_labels, self.num_concepts = 32, 5, 7
        self.is_training = True

    def get_config(self) -> CMFAHConfig:
        backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        return self.config_class(
            **self.settings,
            backbone_config=backbone,
            freeze_backbone=False,
            image_size=self.image_size,
            vocab_size=self.vocab_size,
            word_dim=12,
            text_filters=8,
            hidden_size=self.hidden_size,
            num_concepts=self.num_concepts,
            hash_bits=16,
            num_labels=self.num_labels,
        )

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        inputs = {
            "pixel_values": torch.randn(self.batch_size, 3, self.image_size, self.image_size, generator=generator),
            "input_ids": torch.randint(2, self.vocab_size, (self.batch_size, self.seq_length), generator=generator),
            "attention_mask": torch.ones(self.batch_size, self.seq_length, dtype=torch.long),
            "features": torch.randn(self.batch_size, self.hidden_size, generator=generator),
        }
        inputs["attention_mask"][1, 4:] = 0
        return self.get_config(), {name: inputs[name] for name in self.input_names}


class SCAHNModelTester(CMFAHModelTester):
    config_class = SCAHNConfig
    settings = {"objective": {"_name": "scahn", "queue_size": 4}}


class _Checks(ModelTesterMixin):
    input_names: tuple[str, ...]
    model_tester_class = CMFAHModelTester
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.model_tester.input_names = self.input_names
        self.config_tester = ConfigTester(
            self,
            config_class=self.model_tester.config_class,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers", "hash_bits"],
            hash_bits=32,
            hidden_size=24,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("asks which of transformers' own mixins a test class inherits")
    def test_generation_tester_mixin_inheritance(self):
        pass


class CMFAHImageModelChecks(_Checks, unittest.TestCase):
    all_model_classes = (CMFAHImageModel,)
    input_names = ("pixel_values",)

    def setUp(self):
        super().setUp()
        self.model_tester.is_training = False  # a single tower has no loss
        self.model_tester.seq_length = 16  # regions: a 4 x 4 map
        self.model_tester.key_length = self.model_tester.num_concepts

    def test_model_get_set_embeddings(self):
        model = self.all_model_classes[0](self.model_tester.get_config())
        assert model.get_input_embeddings() is model.embeddings.projection


class CMFAHTextModelChecks(_Checks, unittest.TestCase):
    all_model_classes = (CMFAHTextModel,)
    input_names = ("input_ids", "attention_mask")
    test_resize_embeddings = True

    def setUp(self):
        super().setUp()
        self.model_tester.is_training = False  # a single tower has no loss
        self.model_tester.key_length = self.model_tester.num_concepts


class CMFAHModelChecks(_Checks, unittest.TestCase):
    all_model_classes = (CMFAHModel, CMFAHForPreTraining)
    input_names = ("pixel_values", "input_ids", "attention_mask")
    test_resize_embeddings = True

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and issubclass(model_class, CMFAHForPreTraining):
            inputs["labels"] = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 1, 0]])
        return inputs

    def test_training(self):
        # The model without an objective has no loss.
        with mock.patch.object(self, "all_model_classes", self.all_model_classes[1:]):
            super().test_training()

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        with mock.patch.object(self, "all_model_classes", self.all_model_classes[1:]):
            super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)

    @unittest.skip("two towers, two shapes: checked tower by tower, and in test_modeling_cmfah.py")
    def test_attention_outputs(self):
        pass

    @unittest.skip("two towers, two shapes: checked tower by tower, and in test_modeling_cmfah.py")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("two towers: checked tower by tower")
    def test_retain_grad_hidden_states_attentions(self):
        pass


class SCAHNImageModelChecks(CMFAHImageModelChecks):
    model_tester_class = SCAHNModelTester
    all_model_classes = (SCAHNImageModel,)


class SCAHNTextModelChecks(CMFAHTextModelChecks):
    model_tester_class = SCAHNModelTester
    all_model_classes = (SCAHNTextModel,)


class SCAHNModelChecks(CMFAHModelChecks):
    model_tester_class = SCAHNModelTester
    all_model_classes = (SCAHNModel, SCAHNForPreTraining)


class CMFAHDiscriminatorChecks(_Checks, unittest.TestCase):
    all_model_classes = (CMFAHDiscriminator,)
    input_names = ("features",)
    has_attentions = False

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            inputs["labels"] = torch.tensor([1, 0, 1])
        return inputs

    @unittest.skip("an MLP over features has no sequence")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("an MLP over features has no sequence")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip("reads features, which no embedding makes")
    def test_model_get_set_embeddings(self):
        pass


class CMFAHProcessorChecks(ProcessorTesterMixin, unittest.TestCase):
    processor_class = CMFAHProcessor

    @classmethod
    def _setup_image_processor(cls):
        return ViTImageProcessor(size={"height": 32, "width": 32})

    @classmethod
    def _setup_tokenizer(cls):
        return build_word_tokenizer(["lower", "newer", "upper", "older", "longer", "string"])


del _Checks, ModelTesterMixin, ProcessorTesterMixin  # abstract: pytest must not collect them
