"""JSON and YAML through `documents.py`."""

import json

from cmfah_hf.documents import parse_json, parse_yaml
from fuzz.harness import mutated, mutated_json

DOCUMENT = {"format_version": 1, "files": {"a": [12, 34], "b/c": [0, 0]}, "text": "café \U0001f600 \\", "rate": 1e-4}
SETTINGS = b"model:\n  hash_bits: 64\n  widths: &w [2, 3, 4]\ntraining: {learning_rate: 1e-3, again: *w}\n"


def test_json(fuzzer):
    def attempt(rng):
        text = json.dumps(mutated_json(rng, DOCUMENT) if rng.random() < 0.3 else DOCUMENT).encode()
        parse_json(mutated(rng, text), "document.json")

    fuzzer(share=0.03, limit_s=2).run(attempt)


def test_yaml(fuzzer):
    fuzzer(share=0.03, limit_s=2).run(lambda rng: parse_yaml(mutated(rng, SETTINGS), "settings.yaml"))
