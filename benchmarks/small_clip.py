"""Trains a small CLIP on drawn scenes: a real dual encoder for benchmarks, without downloads, in minutes on a CPU.

    python benchmarks/small_clip.py runs/small-clip
    python benchmarks/small_clip.py runs/clip/encoder --scenes-folder runs/clip/scenes

A `CLIPModel` of transformers (ViT of 4 layers, text transformer of 2), with a byte-level BPE tokenizer trained on its
texts, is trained by symmetric InfoNCE. `AutoModel`, `AutoTokenizer`, `AutoImageProcessor` and `AutoProcessor` load the
folder. Labels serve only to print the float MAP on scenes that it was not trained on.

The second command also writes other scenes: `train` without labels, to train a hash model on; `validation` and `query`
with labels, to measure it. `runs/clip/scenes-labels` has the same scenes, and labels in `train` as well.

Shapes: `B` pairs of a batch, `N` scenes, `E` width of the vectors.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    get_cosine_schedule_with_warmup,
)

from cmfah_hf.data import write_imagefolder
from cmfah_hf.data.scenes import make_scenes
from cmfah_hf.evaluation.metrics import mean_average_precision
from cmfah_hf.training.dual_encoders import image_vectors, load_dual_encoder, text_vectors

BEGIN, END, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
MOST_TOKENS = 32
SIDE, PATCH = 96, 12
HELD_OUT = 600
HELD_OUT_SEED = 1  # the training scenes have the seed of the call, 0
# Number and seed of the scenes of each split that are written, as in retention.py.
SPLITS = {"train": (4_000, 2), "validation": (1_000, 3), "query": (1_000, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the folder to write")
    parser.add_argument("--scenes", type=int, default=4_000)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes-folder", type=Path, help="the folder to write other scenes to")
    own = parser.parse_args()
    if own.scenes_folder is not None:
        write_scenes(own.scenes_folder)
    start, cpu_start = time.perf_counter(), time.process_time()
    train_small_clip(own.output, own.scenes, own.epochs, own.seed)
    cpu_seconds = time.process_time() - cpu_start
    _report(f"trained in {time.perf_counter() - start:.0f} s, {cpu_seconds:.0f} s of processor time")
    scenes = make_scenes(HELD_OUT, seed=HELD_OUT_SEED)
    images_NE, texts_NE = encode(own.output, scenes)
    cosines_NN = images_NE @ texts_NE.T
    relevant_NN = relevance(scenes["labels"])
    for direction, scores in (("text to image", cosines_NN.T), ("image to text", cosines_NN)):
        _report(f"float MAP, {direction}: {mean_average_precision(scores, relevant_NN):.3f}")


def train_small_clip(folder: Path, scenes: int = 4_000, epochs: int = 14, seed: int = 0) -> None:
    """Trains the model and writes it with tokenizer and processor. Equal seeds give equal weights on one machine."""
    torch.manual_seed(seed)
    data = make_scenes(scenes, seed=seed)
    texts = list(data["text"])
    tokenizer = train_tokenizer(texts)
    image_processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pixels = torch.cat([_pixels(image_processor, image) for image in data["image"]])
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
    model = CLIPModel(_configuration(tokenizer))
    _train(model, pixels, inputs, epochs)
    model.save_pretrained(folder)
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    image_processor.save_pretrained(folder)


def write_scenes(folder: Path) -> None:
    """Writes the scenes of `SPLITS` as imagefolders: `folder`, its `train` without labels, and `folder` + "-labels"."""
    parts = {name: make_scenes(count, seed=seed).remove_columns("boxes") for name, (count, seed) in SPLITS.items()}
    write_imagefolder(parts, folder.with_name(f"{folder.name}-labels"))
    write_imagefolder({**parts, "train": parts["train"].remove_columns("labels")}, folder)


def train_tokenizer(texts: Sequence[str], size: int = 2_000) -> CLIPTokenizer:
    """A CLIP tokenizer with merges of these texts. It splits any text into bytes and adds begin and end of text.

    CLIP reads the vector of a text at its first end token. An unknown token, which is the end token, would cut the text
    off, so the vocabulary has all bytes, with and without the end of a word.
    """
    parts = CLIPTokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    trained.normalizer, trained.pre_tokenizer = parts.normalizer, parts.pre_tokenizer
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=bytes_, end_of_word_suffix=END_OF_WORD, show_progress=False
        ),
    )
    learned = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    tokens = dict.fromkeys([*bytes_, *(byte + END_OF_WORD for byte in bytes_), *learned, BEGIN, END])
    merges = [tuple(merge) for merge in _merges(trained)]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=merges, model_max_length=MOST_TOKENS
    )


def encode(encoder: str | Path, scenes: Any, batch: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the images and of the texts of scenes by a dual encoder, `(N, E)` each, of unit length."""
    model, processor = load_dual_encoder(str(encoder), bits=8, link=False)
    starts = range(0, len(scenes), batch)
    images = [image_vectors(model, processor, scenes["image"][start : start + batch]) for start in starts]
    return np.concatenate(images), text_vectors(model, processor, list(scenes["text"]))


def relevance(labels: Sequence[Sequence[str]]) -> np.ndarray:
    """Whether two scenes share a class, `(N, N)` bool."""
    classes = sorted({name for row in labels for name in row})
    one_hot = np.array([[name in row for name in classes] for row in labels], dtype=np.float32)
    return one_hot @ one_hot.T > 0


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    return json.loads(tokenizer.to_str())["model"]["merges"]


def _pixels(image_processor: CLIPImageProcessor, image: Any) -> torch.Tensor:
    return image_processor(image, return_tensors="pt")["pixel_values"].to(torch.bfloat16)  # half the memory


def _configuration(tokenizer: CLIPTokenizer) -> CLIPConfig:
    common = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": 256}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return CLIPConfig(
        text_config={
            **common,
            **special,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MOST_TOKENS,
        },
        vision_config={**common, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=256,
    )


def _train(model: CLIPModel, pixels: torch.Tensor, inputs: Any, epochs: int, batch: int = 128) -> None:
    """Symmetric InfoNCE with the model's own temperature; images are mirrored at random."""
    steps = len(pixels) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, steps, steps * epochs)
    targets_B = torch.arange(batch)
    model.train()
    for epoch in range(epochs):
        losses = []
        for rows in torch.randperm(len(pixels))[: steps * batch].split(batch):
            images = pixels[rows].float()
            mirrored = torch.rand(batch) < 0.5
            images[mirrored] = images[mirrored].flip(-1)
            output = model(
                pixel_values=images, input_ids=inputs.input_ids[rows], attention_mask=inputs.attention_mask[rows]
            )
            logits_BB = output.logits_per_image
            loss = (cross_entropy(logits_BB, targets_B) + cross_entropy(logits_BB.T, targets_B)) / 2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        _report(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
