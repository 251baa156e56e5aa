"""The same in PyTorch, eager and float32: the Mixer-S/16 is timm's where timm can be imported, else the one below.

Photos are decoded and resized by Pillow, as by torchvision's transforms, which timm uses, in processes of a DataLoader.
"""

# pyright: reportMissingImports=false

import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import timing

try:
    import timm
except ImportError:  # it wants torchvision, which does not fit every PyTorch
    timm = None


class Mixing(nn.Module):
    """A block: token and channel mixing, as timm has them."""

    def __init__(self, tokens: int, channels: int, across_tokens: int, across_channels: int) -> None:
        super().__init__()
        mlp = lambda width, hidden: nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(channels, eps=1e-6) for _ in range(2)])
        self.tokens, self.channels = mlp(tokens, across_tokens), mlp(channels, across_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


class MlpMixer(nn.Module):
    """Mixer-S/16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 512, 16, 16)
        self.blocks = nn.Sequential(*(Mixing(196, 512, 256, 2048) for _ in range(8)))
        self.norm, self.head = nn.LayerNorm(512, eps=1e-6), nn.Linear(512, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.stem(images).flatten(2).transpose(1, 2))).mean(1))


class MnistMixer(nn.Module):
    """The MNIST Mixer: norms over tokens, channel mixing first, a head of three layers."""

    def __init__(self) -> None:
        super().__init__()
        mlp = lambda width: nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.stem = nn.Conv2d(1, 128, 7, 7)
        self.norms = nn.ModuleList([nn.LayerNorm(16) for _ in range(6)])
        self.channels, self.tokens = (nn.ModuleList([mlp(width) for _ in range(3)]) for width in (128, 16))
        wide = (nn.Linear(2048, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))
        self.head = nn.Sequential(*wide)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images).flatten(2)  # [B, C, N]
        for i, (channels, tokens) in enumerate(zip(self.channels, self.tokens, strict=True)):
            x = x + channels(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + tokens(self.norms[2 * i + 1](x))
        return self.head(x.flatten(1))


def mixer() -> nn.Module:
    """Return a Mixer-S/16."""
    return timm.create_model("mixer_s16_224", num_classes=1000) if timm else MlpMixer()


def forward(settings: dict[str, Any]) -> timing.Measured:
    """The model alone."""
    model, images = mixer().eval(), torch.randn(settings["batch"], 3, 224, 224)
    with torch.inference_mode():
        return {"rate": timing.rate(lambda: model(images), len(images), settings["seconds"])}


def train(settings: dict[str, Any]) -> timing.Measured:
    """A step of SGD with momentum and clipped gradients; nothing is compiled."""
    model, size = mixer().train(), settings["batch"]
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    images, labels = torch.randn(size, 3, 224, 224), torch.randint(0, 1000, (size,))
    rate = timing.rate(lambda: _update(model, optimizer, images, labels), size, settings["seconds"])
    return {"rate": rate, "memory": timing.peak_mib()}


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def loop(settings: dict[str, Any]) -> timing.Measured:
    """Steps of the MNIST Mixer over images in memory, shuffled and shifted by a pixel, with AdamW."""
    data = torch.full((1024, 1, 28, 28), 128, dtype=torch.uint8)
    labels = torch.randint(0, 10, (len(data),))
    model = MnistMixer()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.05)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield from torch.randperm(len(data)).split(64)

    def step(rows: torch.Tensor) -> None:
        padded = F.pad(data[rows], (1, 1, 1, 1))
        down, right = torch.randint(0, 3, (2, len(rows), 1, 1, 1))
        y, x = down + torch.arange(28).view(-1, 1), right + torch.arange(28)
        images = padded[torch.arange(len(rows)).view(-1, 1, 1, 1), 0, y, x]
        _update(model, optimizer, images.float() / 127.5 - 1, labels[rows])

    steps = batches()
    for part in (settings["steps"] // 2, settings["steps"]):
        begun, count = time.perf_counter(), 0
        for _, rows in zip(range(part), steps, strict=False):
            step(rows)
            count += len(rows)
    return {"rate": count / (time.perf_counter() - begun)}


class Photos(torch.utils.data.Dataset):
    """Photos as timm reads them: a random crop and a flip, or the middle of the resized one."""

    def __init__(self, folder: str, training: bool) -> None:
        self.paths, self.training = sorted(Path(folder).glob("*/*.jpg")), training

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        image = _random_crop(image) if self.training else _middle(image)
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div_(127.5).sub_(1)


def _random_crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    while True:
        area, ratio = width * height * random.uniform(0.05, 1), math.exp(random.uniform(-0.288, 0.288))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    left, top = random.randint(0, width - w), random.randint(0, height - h)
    # Cropped first: so the filter sees no pixel from outside, as in torchvision.
    image = image.crop((left, top, left + w, top + h)).resize((224, 224), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def _middle(image: Image.Image) -> Image.Image:
    scale = 256 / min(image.size)
    image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - 224) // 2 for side in image.size)
    return image.crop((left, top, left + 224, top + 224))


def _loader(photos: Photos, batch: int) -> torch.utils.data.DataLoader:
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.utils.data.DataLoader(photos, batch, shuffle=photos.training, num_workers=workers)


def pipeline(settings: dict[str, Any]) -> timing.Measured:
    """A random crop, resized, and a flip, in as many processes as cores."""

    def batches() -> Iterator[int]:
        loader = _loader(Photos(settings["photos"], training=True), 128)
        while True:
            for batch in loader:
                yield len(batch)

    return {"rate": timing.rate_of(batches(), settings["seconds"])}


def inference(settings: dict[str, Any]) -> timing.Measured:
    """The five likeliest classes of each photo, from the second batch on."""
    model = mixer().eval()
    loader = _loader(Photos(settings["photos"], training=False), settings["inference_batch"])

    def batches() -> Iterator[int]:
        for batch in loader:
            model(batch).softmax(-1).topk(5)[1].numpy()
            yield len(batch)

    with torch.inference_mode():
        return {"rate": timing.after_the_first(batches())}


if __name__ == "__main__":
    rows = {"forward": forward, "train": train, "loop": loop, "pipeline": pipeline, "inference": inference}
    timing.main(rows, {"PyTorch": torch.__version__, "timm": timm.__version__ if timm else "none, its Mixer rewritten"})
