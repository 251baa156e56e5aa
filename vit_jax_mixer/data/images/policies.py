"""Published policies that draw a few transforms for each image: RandAugment, timm's, AutoAugment.

One table holds the transforms, each with an amount in its own unit (degrees, pixels, bits). A
`Scale` says how one publication turns a level, usually 0 to 10, into those amounts.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Annotated

import cv2
import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.data.images import colour, warp
from vit_jax_mixer.data.images.decoding import HostOp
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Within

Transform = Callable[[np.ndarray, float, "Scale", np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How a publication reads levels, and what it does about pixels from outside the image.

    Attributes:
        amounts: for each of its transforms the amount at level / 10.
        signed: those whose level has a random sign.
        fill: RGB of what comes in from outside; grey images get the mean of it.
        interpolations: OpenCV's; each warp draws one.
    """

    amounts: Mapping[str, Callable[[float], float]]
    signed: frozenset[str]
    fill: tuple[int, int, int]
    interpolations: tuple[int, ...] = (cv2.INTER_NEAREST,)

    def distort(self, image: np.ndarray, name: str, level: float, rng: np.random.Generator) -> np.ndarray:
        """Map u8[H, W, C] to u8[H, W, C] by a transform at a level."""
        if name in self.signed and rng.random() < 0.5:
            level = -level
        return TRANSFORMS[name](image, self.amounts[name](level / 10), self, rng)

    def fill_of(self, image: np.ndarray) -> tuple[int, ...]:
        """Return ``fill`` for the number of channels of the image."""
        return self.fill if image.shape[2] == 3 else (round(sum(self.fill) / 3),)


def _plain(function: Callable[[np.ndarray], np.ndarray]) -> Transform:
    return lambda image, amount, scale, rng: function(image)


def _graded(function: Callable[..., np.ndarray], kind: type = float) -> Transform:
    return lambda image, amount, scale, rng: function(image, kind(amount))


def _contrast_about_count(image: np.ndarray, amount: float, scale: Scale, rng: np.random.Generator) -> np.ndarray:
    """Contrast as TensorFlow's RandAugment has it: about the number of pixels / 256 in place of their mean."""
    del scale, rng
    return colour.contrast(image, amount, middle=min(255, image.shape[0] * image.shape[1] // 256))


def _warped(matrix: Callable[[float, int, int], np.ndarray]) -> Transform:
    def transform(image: np.ndarray, amount: float, scale: Scale, rng: np.random.Generator) -> np.ndarray:
        interpolation = scale.interpolations[rng.integers(len(scale.interpolations))]
        return warp.warp(image, matrix(amount, *image.shape[:2]), scale.fill_of(image), interpolation)

    return transform


TRANSFORMS: Mapping[str, Transform] = {
    "AutoContrast": _plain(colour.autocontrast),
    "Equalize": _plain(colour.equalize),
    "Invert": _plain(colour.invert),
    "Posterize": _graded(colour.posterize, int),  # bits kept
    "Solarize": _graded(colour.solarize, int),  # threshold
    "SolarizeAdd": _graded(colour.solarize_add, int),
    "Color": _graded(colour.saturation),  # factor, also the next four
    "Contrast": _graded(colour.contrast),
    "ContrastAboutCount": _contrast_about_count,
    "Brightness": _graded(colour.brightness),
    "Sharpness": _graded(colour.sharpness),
    "Rotate": _warped(warp.rotation),  # degrees
    "ShearX": _warped(warp.shear_x),  # slope
    "ShearY": _warped(warp.shear_y),
    "TranslateX": _warped(warp.translate_x),  # pixels
    "TranslateY": _warped(warp.translate_y),
    "TranslateXRel": _warped(warp.translate_x_rel),  # part of the side
    "TranslateYRel": _warped(warp.translate_y_rel),
    "Cutout": lambda image, amount, scale, rng: warp.erase(image, int(amount), scale.fill_of(image), rng),  # side
}

# --- How levels are read; x is level / 10 ------------------------------------------------------------

_ENHANCERS = ("Color", "Contrast", "Brightness", "Sharpness")


def _factor(x: float) -> float:
    return 1.8 * x + 0.1


_WARPS = frozenset(("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel"))
_COMMON: Mapping[str, Callable[[float], float]] = {
    **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), lambda x: 0),
    "Rotate": lambda x: 30 * x,
    "Posterize": lambda x: min(8, int(4 * x)),
    "Solarize": lambda x: int(256 * x),
    "SolarizeAdd": lambda x: int(110 * x),
    **dict.fromkeys(("Color", "Brightness", "Sharpness"), _factor),
    **dict.fromkeys(("ShearX", "ShearY"), lambda x: 0.3 * x),
}
# More of these two at higher levels, where _COMMON has less.
_INCREASING = {"Posterize": lambda x: 4 - int(4 * x), "Solarize": lambda x: 256 - int(256 * x)}

RANDAUGMENT = Scale(
    {
        **_COMMON,
        "Solarize": lambda x: int(256 * x) % 256,  # see `randaugment` for this and the next one
        "ContrastAboutCount": _factor,
        **dict.fromkeys(("TranslateX", "TranslateY"), lambda x: 100 * x),
        "Cutout": lambda x: 2 * int(40 * x),
    },
    signed=_WARPS,
    fill=(128, 128, 128),
)
TIMM = Scale(
    {**_COMMON, "Contrast": _factor, **dict.fromkeys(("TranslateXRel", "TranslateYRel"), lambda x: 0.45 * x)},
    signed=_WARPS,
    fill=(124, 116, 104),  # the mean of ImageNet
    interpolations=(cv2.INTER_LINEAR, cv2.INTER_CUBIC),
)
TIMM_INCREASING = dataclasses.replace(
    TIMM,
    amounts={**TIMM.amounts, **_INCREASING, **dict.fromkeys(_ENHANCERS, lambda x: max(0.1, 1 + 0.9 * x))},
    signed=_WARPS.union(_ENHANCERS),
)
AUTOAUGMENT_CIFAR10 = Scale(
    {
        **_COMMON,
        **_INCREASING,
        "Contrast": _factor,
        # 10 pixels of the 32 that an image of CIFAR-10 is wide.
        **dict.fromkeys(("TranslateXRel", "TranslateYRel"), lambda x: 10 / 32 * x),
    },
    signed=_WARPS,
    fill=(125, 123, 114),  # the mean of CIFAR-10
)

# --- The policies ------------------------------------------------------------------------------------


def randaugment(
    num_layers: Annotated[int, Within(1, 100)] = 2, magnitude: Annotated[int, Within(0, 100)] = 15
) -> HostOp:
    """RandAugment (Cubuk et al. 2019, arXiv 1909.13719), as the MLP-Mixer was trained with it.

    Each layer draws one of 16 transforms uniformly and applies it, all at the same magnitude m. The paper
    leaves the scales open; these are those of the TensorFlow implementation (in tensorflow/tpu, then in
    google-research/big_vision) that the Mixer's ``randaug(2, 15)`` means, where x = m / 10:

    - AutoContrast, Equalize and Invert have no level.
    - Rotate by 30 x degrees, ShearX and ShearY by 0.3 x, TranslateX and TranslateY by 100 x pixels, each
      with a random sign; the nearest pixel is taken, and grey (128) comes in from outside. These are
      pixels whatever the size of the image: m = 15 moves all of a 32x32 image out of sight.
    - Color, Contrast, Brightness and Sharpness with the factor 1.8 x + 0.1: at m = 15 it is 2.8.
    - Posterize keeps int(4 x) bits, so that more magnitude means less change: 6 bits at m = 15.
    - Solarize inverts from int(256 x), SolarizeAdd adds int(110 x) to values under 128.
    - Cutout fills a square of side 2 int(40 x) with grey, cut off at the border.

    Two slips of that implementation are kept, as the published results were had with it. The
    threshold of Solarize is compared as a byte, so it wraps around at 256: at m = 15 it is not 384 but
    128 (TensorFlow 2.21 does so). And Contrast is not about the mean of the grey image, but about the
    number of its pixels / 256, at most 255: about 196 for 224x224.

    Args:
        num_layers: transforms applied one after the other.
        magnitude: 0 or more.
    """
    return _uniformly(RANDAUGMENT, num_layers, lambda rng: magnitude, probability=1.0)


def timm_randaugment(config: str = "rand-m9-n2-mstd0.5") -> HostOp:
    """RandAugment as the timm library has it, and as it writes it.

    Draw N of 15 transforms uniformly; apply each with probability P at a magnitude of its own, from a
    normal distribution of mean M and standard deviation S, clipped to [0, 10]. What comes in from
    outside is the mean colour of ImageNet; each warp draws bilinear or bicubic. The scales are those
    of `randaugment`, but for translations, up to 0.45 of the side, and there is no Cutout.

    With inc1 a higher magnitude is a stronger change throughout: Posterize keeps 4 - int(4 x) bits,
    Solarize inverts from 256 - int(256 x), and the factors of Color, Contrast, Brightness and
    Sharpness are 1 + 0.9 x or 1 - 0.9 x, but at least 0.1, where x is the magnitude / 10.

    Two things to know of timm: there inc0 means the same as inc1 (here it is off), and an S over 100
    means magnitudes uniform in [0, M] (here too).

    Args:
        config: ``rand`` and any of mM (10 if missing), nN (2), mstdS (0), inc0 or inc1 (inc0), pP (0.5),
            joined by ``-``.
    """
    name, *parts = config.split("-")
    _require(name == "rand", f"{config!r} must begin with 'rand'")
    found = {"m": "10", "n": "2", "mstd": "0", "inc": "0", "p": "0.5"}
    for part in parts:
        match = re.fullmatch(r"(m|n|mstd|inc|p)(\d{1,6}(?:\.\d{1,20})?)", part)
        if match is None:
            raise UserError(f"{part[:20]!r} is not known; known: m9, n2, mstd0.5, inc0, inc1, p0.5 with other numbers.")
        found[match[1]] = match[2]
    for key in ("m", "n", "inc"):
        _require(found[key].isdigit(), f"{key} must be a whole number, not {found[key]}")
    mean, layers, std, probability = int(found["m"]), int(found["n"]), float(found["mstd"]), float(found["p"])
    _require(1 <= layers <= 100, "n must be from 1 to 100")
    _require(found["inc"] in ("0", "1"), "inc must be 0 or 1")
    _require(probability <= 1, "p must be 1 or less")

    def magnitude(rng: np.random.Generator) -> float:
        drawn = rng.uniform(0, mean) if std > 100 else rng.normal(mean, std)
        return min(10.0, max(0.0, drawn))

    return _uniformly(TIMM_INCREASING if found["inc"] == "1" else TIMM, layers, magnitude, probability)


def autoaugment(policy: str = "cifar10") -> HostOp:
    """AutoAugment (Cubuk et al. 2018, arXiv 1805.09501): draw one of the policy's pairs of transforms.

    ``cifar10`` is table 7 of the paper: each transform of a pair with its probability and its level. The
    amounts at a level are of the code published with it (tensorflow/models, research/autoaugment),
    which disagree with the ranges in table 6 for translations (10 of 32 pixels at level 10) and for
    Posterize (4 - int(4 x) bits, x = level / 10); Solarize inverts from 256 - int(256 x), the others
    are as in `randaugment`. Translations grow with the image, so that it may be larger than 32x32.

    Args:
        policy: ``cifar10``.
    """
    pairs = specs.lookup({"cifar10": CIFAR10_PAIRS}, policy, "autoaugment: policy")

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = np.ascontiguousarray(image)
        for name, probability, level in pairs[rng.integers(len(pairs))]:
            if rng.random() < probability:
                image = AUTOAUGMENT_CIFAR10.distort(image, name, level, rng)
        return image

    return op


def _uniformly(
    scale: Scale, layers: int, magnitude: Callable[[np.random.Generator], float], probability: float
) -> HostOp:
    """In each layer draw one of the transforms of ``scale``, and apply it with ``probability``."""
    names = tuple(scale.amounts)

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = np.ascontiguousarray(image)
        for _ in range(layers):
            name = names[rng.integers(len(names))]
            if rng.random() < probability:
                image = scale.distort(image, name, magnitude(rng), rng)
        return image

    return op


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"timm_randaugment: {message}.")


# (transform, probability, level): Cubuk et al. 2018, table 7. Where it has no level, 0 stands.
CIFAR10_PAIRS = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateXRel", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateYRel", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateXRel", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateYRel", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateYRel", 0.9, 9), ("TranslateYRel", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateYRel", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
