"""Files that a Space reads: its settings, and the metrics of its model."""

import json

from cmfah_hf.space import SpaceSettings, charts
from cmfah_hf.space.settings import SETTINGS_NAME, bundled_space
from fuzz.harness import mutated, mutated_json


def test_settings(fuzzer, tmp_path):
    settings = json.loads((bundled_space() / SETTINGS_NAME).read_text(encoding="utf-8")) | {"hosts": ["search.home"]}

    def attempt(rng):
        content = json.dumps(mutated_json(rng, settings)).encode()
        (tmp_path / SETTINGS_NAME).write_bytes(mutated(rng, content) if rng.random() < 0.4 else content)
        loaded = SpaceSettings.load(tmp_path)
        assert SpaceSettings(**json.loads(loaded.to_json())) == loaded

    fuzzer(share=0.02, limit_s=2).run(attempt)


def test_metrics(fuzzer):
    metrics = json.loads((bundled_space() / "model" / "metrics.json").read_text(encoding="utf-8"))

    odd = ("<script>", 10**300, [], {}, None, float("nan"), -1, "5", 64)

    def attempt(rng):
        changed = mutated_json(rng, metrics["query"], odd)
        shown = charts.quality({**metrics, "query": changed, "hash_bits": rng.choice(odd)})
        assert "<script>" not in shown

    fuzzer(share=0.01, limit_s=2).run(attempt)
