r"""Fifteen corruptions of images at five strengths: what a network says once the world is not as it was.

The list is that of Hendrycks and Dietterich 2019, arXiv 1903.12261. A function here makes a `Corruption`, a
pure function (key, image [h,w,c] float32 in [0,1], strength 1 .. 5) -> image. `corrupt` maps it over images
of any size and number of channels and cuts what leaves [0,1]. The strength is traced: one program serves all.

Where a constant is a length it is written in pixels of an image of 32x32 and grows with the shorter side; all
others are as they are. Unless a docstring says otherwise the five constants are those published for images
of 32x32 (CIFAR-10-C). No picture file is read: frost is drawn, too. The mean squared change of a natural
image grows with the strength, of each of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.data.rand_augment import LUMA
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import Array, Corruption, Images, UserError

STRENGTHS = (1, 2, 3, 4, 5)
BLOCK = 256  # images that are corrupted at a time
REFERENCE_SIDE = 32  # pixels, of the images that lengths are written for


# --- many images --------------------------------------------------------------------------------------


def corrupt(
    corruption: Corruption, key: Array, images: Array, strength: Array | int, first: int = 0
) -> Array:
    """Images [N,h,w,c] corrupted, in their own dtype: uint8 in 0 .. 255, float32 in [0,1].

    The i-th has a key of its own, `fold_in(key, first + i)`: so it is the same whatever it is among.
    """
    in_bytes = images.dtype == jnp.uint8
    scaled = images.astype(jnp.float32) / 255 if in_bytes else images
    strength = jnp.asarray(strength, jnp.int32)
    keys = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(len(images)))
    found = jax.vmap(lambda own, image: corruption(own, image, strength))(keys, scaled).clip(0, 1)
    return jnp.round(255 * found).astype(jnp.uint8) if in_bytes else found


def corrupted(name: str, corruption: Corruption, images: np.ndarray | Images, strength: int) -> np.ndarray:
    """`corrupt` on the host, a block at a time; the key is that of the name, the same in every run.

    Raises `UserError` for images that have no neighbours or are in units of their own.
    """
    check(images)
    key = jax.random.key(zlib.crc32(name.encode()))
    size = min(BLOCK, len(images))
    found = []
    for first in range(0, len(images), size):
        part = images[first : first + size]
        filled = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
        found.append(np.asarray(_corrupt(corruption)(key, filled, np.int32(strength), np.int32(first))))
    return np.concatenate(found)[: len(images)]


@lru_cache
def _corrupt(corruption: Corruption) -> Callable:
    return jax.jit(partial(corrupt, corruption))


def named(name: str, others: Sequence[str] = ()) -> Callable[[Array, Array, Array], Array]:
    """The corruption of that name with its usual constants; `UserError` where there is none.

    `others` are names that the caller knows what to do with: suggested like those there are here.
    """
    known = {
        n: one
        for n, one in globals().items()
        if n[0] != "_" and getattr(one, "__annotations__", {}).get("return") == "Corruption"
    }
    if name not in known:
        raise UserError(f"there is no corruption {name!r}{hint(name, [*known, *others])}")
    return known[name]()


def check(images: np.ndarray | Images) -> None:
    """Raise `UserError` unless images [N,h,w,c] can be corrupted: pictures, uint8 or within [0,1]."""
    _, height, width, _ = images.shape
    if min(height, width) < 2:
        raise UserError(f"corruptions are of pictures, 2x2 pixels at least, and images are {height}x{width}")
    if images.dtype != np.uint8:
        part = images[: min(len(images), BLOCK)]
        if part.min() < 0 or part.max() > 1:
            raise UserError(
                f"corruptions need to know what black and white are, and pixels go from {part.min():g} to "
                f"{part.max():g}: must be uint8, or floats in [0, 1]"
            )


# --- noise --------------------------------------------------------------------------------------------


def gaussian_noise(*, deviations: tuple[float, ...] = (0.04, 0.06, 0.08, 0.09, 0.10)) -> Corruption:
    r"""Normal noise on every value, as of a sensor in little light.

    $$x' = x + \sigma n, \qquad n \sim N(0, 1)$$
    """
    return _made(_gaussian_noise, deviations)


def _gaussian_noise(key: Array, image: Array, strength: Array, deviations: tuple[float, ...]) -> Array:
    return image + _at(deviations, strength) * jax.random.normal(key, image.shape)


def shot_noise(*, photons: tuple[float, ...] = (500.0, 250.0, 100.0, 75.0, 50.0)) -> Corruption:
    r"""Noise of light that comes in photons: the fewer make full white, the more.

    $$x' = n / \lambda, \qquad n \sim \mathrm{Poisson}(\lambda x)$$
    """
    return _made(_shot_noise, photons)


def _shot_noise(key: Array, image: Array, strength: Array, photons: tuple[float, ...]) -> Array:
    full = _at(photons, strength)
    return _poisson(jax.random.uniform(key, image.shape), full * image) / full


def _poisson(drawn: Array, mean: Array) -> Array:
    """The quantiles of Poisson distributions at drawn numbers in [0,1): how many photons came.

    Up to a mean of 16 exact, by adding up the probabilities; above it by the normal distribution with the
    second term of Cornish and Fisher, which is right to within one. `jax.random.poisson` rejects and tries
    again: it took six times as long to compile as all the rest.
    """
    few = jnp.minimum(mean, 16.0)

    def one_more(number: Array, sums: tuple) -> tuple:
        count, probability, below = sums
        below = below + probability
        probability = probability * few / (number.astype(jnp.float32) + 1)
        return count + (drawn >= below).astype(jnp.float32), probability, below

    start = (jnp.zeros_like(mean), jnp.exp(-few), jnp.zeros_like(mean))
    exact, _, _ = jax.lax.fori_loop(0, 48, one_more, start)
    normal = jax.scipy.special.ndtri(drawn.clip(1e-7, 1 - 1e-7))
    many = jnp.round(mean + jnp.sqrt(mean) * normal + (normal**2 - 1) / 6)
    return jnp.where(mean > 16, jnp.maximum(many, 0.0), exact)


def impulse_noise(*, shares: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05, 0.07)) -> Corruption:
    """A share of all values is black or white, each alike: salt and pepper."""
    return _made(_impulse_noise, shares)


def _impulse_noise(key: Array, image: Array, strength: Array, shares: tuple[float, ...]) -> Array:
    share, drawn = _at(shares, strength), jax.random.uniform(key, image.shape)
    return jnp.where(drawn < share / 2, 0.0, jnp.where(drawn > 1 - share / 2, 1.0, image))


# --- blur ---------------------------------------------------------------------------------------------


def defocus_blur(*, radii: tuple[float, ...] = (0.6, 0.9, 1.2, 1.6, 2.1)) -> Corruption:
    """The mean over a disk around every pixel, whose radius is in pixels of a 32x32 image.

    Radii are ours: published are 0.3 to 1.5 with a second blur against jagged edges, which this one does
    not need, for its disk lies between the pixels.
    """
    return _made(_defocus_blur, radii)


def _defocus_blur(key: Array, image: Array, strength: Array, radii: tuple[float, ...]) -> Array:
    length = _pixels(image)
    rings, turns = np.meshgrid(np.sqrt((np.arange(4) + 0.5) / 4), np.linspace(0, 2 * np.pi, 13)[:-1])
    disk = np.stack([rings * np.sin(turns), rings * np.cos(turns)], axis=-1).reshape(-1, 2)
    points = _at(radii, strength) * length * jnp.asarray(disk, jnp.float32)
    return _blurred(image, points, jnp.full(len(disk), 1 / len(disk)), _reach(max(radii) * length))


def glass_blur(*, distances: tuple[float, ...] = (0.5, 0.75, 1.0, 1.4, 1.9)) -> Corruption:
    """Every pixel is what lies at a random place near it, between two light blurs, as behind frosted glass.

    Distances, in pixels of a 32x32 image, are ours: published are swaps of neighbours one after another, h w
    steps of which none can be taken before the last one.
    """
    return _made(_glass_blur, distances)


def _glass_blur(key: Array, image: Array, strength: Array, distances: tuple[float, ...]) -> Array:
    length, far = _pixels(image), max(distances)
    distance = _at(distances, strength) * length
    moved = distance * jax.random.uniform(key, (*image.shape[:2], 2), minval=-1.0, maxval=1.0)
    soft = partial(_gaussian_blurred, deviation=0.4 * distance, most=0.4 * far * length)
    return soft(_sampled(soft(image), moved))


def motion_blur(*, lengths: tuple[float, ...] = (1.5, 2.25, 3.0, 3.75, 4.75)) -> Corruption:
    """The mean along a line that fades, at a random angle of up to 45 degrees from level.

    Lengths, to where it has faded to an eighth, are in pixels of a 32x32 image and ours: published are radii
    6 to 9 with deviations 1 to 2.5.
    """
    return _made(_motion_blur, lengths)


def _motion_blur(key: Array, image: Array, strength: Array, lengths: tuple[float, ...]) -> Array:
    return _smeared(key, image, _at(lengths, strength) * _pixels(image), max(lengths) * _pixels(image))


def _smeared(key: Array, image: Array, length: Array | float, most: float) -> Array:
    """Along a line from every pixel on, whose weights are those of half a normal distribution."""
    along = np.linspace(0, 1, 17)
    weights = np.exp(-np.log(8) * along**2)
    angle = jax.random.uniform(key, (), minval=-jnp.pi / 4, maxval=jnp.pi / 4)
    direction = jnp.stack([jnp.sin(angle), jnp.cos(angle)])[None]
    points = length * jnp.asarray(along, jnp.float32)[:, None] * direction
    return _blurred(image, points, jnp.asarray(weights / weights.sum(), jnp.float32), _reach(most))


def zoom_blur(*, zooms: tuple[float, ...] = (1.06, 1.11, 1.16, 1.21, 1.26)) -> Corruption:
    """The mean of the image and of what a camera sees while it comes nearer, up to a zoom.

    Always in eleven steps; published are steps of 0.01, hence more of them for a larger zoom.
    """
    return _made(_zoom_blur, zooms)


def _zoom_blur(key: Array, image: Array, strength: Array, zooms: tuple[float, ...]) -> Array:
    zoom = 1 + (_at(zooms, strength) - 1) * jnp.linspace(0.0, 1.0, 11)[:, None]

    def axis(size: int) -> Array:  # [11,size,size], what each pixel is made of
        centre = (size - 1) / 2
        places = (jnp.arange(size, dtype=jnp.float32)[None] - centre) / zoom + centre
        return _between(places, size)

    nearer = jnp.einsum("syh,hwc,sxw->yxc", axis(image.shape[0]), image, axis(image.shape[1]))
    return (image + nearer) / 12


# --- weather ------------------------------------------------------------------------------------------


def snow(*, thresholds: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6)) -> Corruption:
    """Flakes that fall aslant over a scene that is whiter for them.

    Flakes are what of smooth noise is above a threshold, smeared along their way, once as drawn and once
    turned round, as published; the scene is between itself and a brighter grey. Constants are ours.
    """
    return _made(_snow, thresholds)


def _snow(key: Array, image: Array, strength: Array, thresholds: tuple[float, ...]) -> Array:
    flakes_key, way_key = jax.random.split(key)
    length = _pixels(image)
    noise = jax.random.normal(flakes_key, (*image.shape[:2], 1))
    flakes = jnp.maximum(0.55 * noise - _at(thresholds, strength), 0.0)
    flakes = 2.5 * _smeared(way_key, flakes, 4 * length, 4 * length)
    whiter = jnp.maximum(image, 1.5 * _grey(image) + 0.5).clip(0, 1)
    share = 0.04 * strength.astype(jnp.float32)
    return (1 - share) * image + share * whiter + flakes + flakes[::-1, ::-1]


def frost(*, shares: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6)) -> Corruption:
    """Needles of ice on the lens, bluish white, over a scene that is dimmed for them.

    Published are photographs of frost; here its needles are the ridges of noise of many sizes, and denser
    towards the border. The shares are how much of the light the ice gives.
    """
    return _made(_frost, shares)


def _frost(key: Array, image: Array, strength: Array, shares: tuple[float, ...]) -> Array:
    share = _at(shares, strength)
    height, width, channels = image.shape
    ridges = 1 - jnp.abs(2 * _clouds(key, height, width, decay=1.5) - 1)
    down, right = (jnp.linspace(-1.0, 1.0, size) ** 2 for size in (height, width))
    border = jnp.maximum(down[:, None], right[None, :])
    ice = (ridges**2 * (0.55 + 0.6 * border)).clip(0, 1)[:, :, None]
    tint = jnp.array([0.85, 0.93, 1.0]) if channels == 3 else jnp.full(channels, 0.93)
    return (1 - 0.6 * share) * image + 1.3 * share * ice * tint[None, None]


def fog(
    *,
    amounts: tuple[float, ...] = (0.2, 0.5, 0.75, 1.0, 1.5),
    decays: tuple[float, ...] = (3.0, 3.0, 2.5, 2.0, 1.75),
) -> Corruption:
    r"""Clouds before the scene, whose contrast falls as it would in them.

    $$x' = (x + a f) \frac{m}{m + a}, \qquad m = \max x$$

    $f$ in [0,1] is noise of many sizes, each finer one weaker by the decay. Published is the diamond-square
    algorithm; here the grids of all sizes are drawn at once and added up.
    """
    return _made(_fog, amounts, decays)


def _fog(
    key: Array, image: Array, strength: Array, amounts: tuple[float, ...], decays: tuple[float, ...]
) -> Array:
    amount, most = _at(amounts, strength), jnp.maximum(image.max(), 0.05)
    height, width, _ = image.shape
    clouds = _clouds(key, height, width, decay=_at(decays, strength))[:, :, None]
    return (image + amount * clouds) * most / (most + amount)


# --- light --------------------------------------------------------------------------------------------


def brightness(*, added: tuple[float, ...] = (0.05, 0.10, 0.15, 0.20, 0.30)) -> Corruption:
    r"""More light, hue and saturation as they were: the value of HSV is raised.

    $$x' = x\, v' / v, \qquad v = \max_c x_c, \quad v' = \min(v + a, 1)$$

    Black becomes grey.
    """
    return _made(_brightness, added)


def _brightness(key: Array, image: Array, strength: Array, added: tuple[float, ...]) -> Array:
    value = image.max(axis=-1, keepdims=True)
    raised = jnp.minimum(value + _at(added, strength), 1.0)
    return jnp.where(value > 0, image / jnp.where(value > 0, value, 1.0) * raised, raised)


def contrast(*, factors: tuple[float, ...] = (0.75, 0.5, 0.4, 0.3, 0.15)) -> Corruption:
    r"""Nearer to the mean of each channel.

    $$x' = a (x - \bar{x}) + \bar{x}$$
    """
    return _made(_contrast, factors)


def _contrast(key: Array, image: Array, strength: Array, factors: tuple[float, ...]) -> Array:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return _at(factors, strength) * (image - mean) + mean


# --- digital ------------------------------------------------------------------------------------------


def elastic_transform(*, distances: tuple[float, ...] = (0.5, 0.8, 1.1, 1.5, 2.0)) -> Corruption:
    """A rubber sheet that is pulled about: smooth random moves (Simard et al. 2003).

    Distances are root mean squares in pixels of a 32x32 image, of moves that are smooth over 4 of them.
    Published are pairs of size and smoothness, a move of the whole sheet among them, that do not grow from
    one strength to the next.
    """
    return _made(_elastic, distances)


def _elastic(key: Array, image: Array, strength: Array, distances: tuple[float, ...]) -> Array:
    smooth = 4 * _pixels(image)
    drawn = jax.random.uniform(key, (*image.shape[:2], 2), minval=-1.0, maxval=1.0)
    moves = _gaussian_blurred(drawn, smooth, smooth)
    size = jnp.sqrt(jnp.mean(moves**2) * 2)  # of a move, both ways together
    return _sampled(image, _at(distances, strength) * _pixels(image) * moves / size)


def pixelate(*, shares: tuple[float, ...] = (0.9, 0.75, 0.6, 0.45, 0.35)) -> Corruption:
    """Fewer and larger pixels: a share of them each way, each the mean of all that it covers.

    Shares are ours: those published, 0.95 to 0.65, are so near to one another that on 28 pixels the second
    changes less than the first.
    """
    return _made(_pixelate, shares)


def _pixelate(key: Array, image: Array, strength: Array, shares: tuple[float, ...]) -> Array:
    def axis(size: int) -> Array:  # [size,size], what each pixel is made of
        width = size / jnp.maximum(jnp.floor(_at(shares, strength) * size + 1e-3), 1.0)  # of a larger one
        pixel = jnp.arange(size, dtype=jnp.float32)
        first = jnp.floor((pixel + 0.5) / width)[:, None] * width
        covered = jnp.minimum(first + width, pixel[None] + 1) - jnp.maximum(first, pixel[None])
        return jnp.maximum(covered, 0.0) / width

    return jnp.einsum("yh,hwc,xw->yxc", axis(image.shape[0]), image, axis(image.shape[1]))


def jpeg_compression(*, qualities: tuple[float, ...] = (80.0, 65.0, 58.0, 50.0, 40.0)) -> Corruption:
    """What JPEG leaves of blocks of 8x8: their cosine transform, rounded to steps that grow as quality falls.

    Tables and their scale are those of the standard's annex K (ITU-T T.81) and of the Independent JPEG Group.
    Colours keep their resolution (4:4:4), where most programs halve that of chroma. A border that is no whole
    block is filled up with its last pixels.
    """
    return _made(_jpeg, qualities)


LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMINANCE = np.full((8, 8), 99)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
TO_YCBCR = np.array([LUMA, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)])
COSINES = np.cos((2 * np.arange(8) + 1) * np.arange(8)[:, None] * np.pi / 16) / 2  # [frequency, place]
COSINES[0] /= np.sqrt(2)  # so that the matrix is orthogonal


def _jpeg(key: Array, image: Array, strength: Array, qualities: tuple[float, ...]) -> Array:
    quality = _at(qualities, strength)
    percent = jnp.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    levels = jnp.round(255 * image) - 128
    in_colour = image.shape[-1] == 3
    if in_colour:  # luma is centred like grey; chroma is centred at 0 already
        levels = jnp.round(levels @ jnp.asarray(TO_YCBCR.T, jnp.float32))
    tables = [LUMINANCE, *[CHROMINANCE if in_colour else LUMINANCE] * (image.shape[-1] - 1)]
    steps = jnp.floor((jnp.asarray(np.stack(tables, -1), jnp.float32) * percent + 50) / 100).clip(1, 255)
    coded = _in_blocks(levels, steps)
    if in_colour:
        coded = coded @ jnp.asarray(np.linalg.inv(TO_YCBCR).T, jnp.float32)
    return jnp.round(coded + 128) / 255


def _in_blocks(levels: Array, steps: Array) -> Array:
    """Levels [h,w,c] less what rounding to steps [8,8,c] in the frequencies of each block takes from them."""
    height, width, channels = levels.shape
    filled = jnp.pad(levels, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    blocks = filled.reshape(filled.shape[0] // 8, 8, filled.shape[1] // 8, 8, channels)
    cosines = jnp.asarray(COSINES, jnp.float32)
    waves = jnp.einsum("uy,aybxc,vx->abuvc", cosines, blocks, cosines)
    # Halves away from 0, as the Independent JPEG Group's: they are common among whole numbers. And so is what
    # float32 takes for a little less, or machines would differ.
    number = waves / steps[None, None]
    rounded = jnp.sign(number) * jnp.floor(jnp.abs(number) + 0.5001) * steps[None, None]
    coded = jnp.einsum("uy,abuvc,vx->aybxc", cosines, rounded, cosines)
    return jnp.round(coded.reshape(filled.shape)[:height, :width].clip(-128, 127))


# --- what they are made of ----------------------------------------------------------------------------


def _made(function: Callable, *constants: tuple[float, ...]) -> Corruption:
    """The corruption of five constants, equal to every other one of the same: a key of jit must be."""
    for values in constants:
        if len(values) != len(STRENGTHS):
            raise UserError(
                f"{function.__name__.strip('_')}: {len(values)} constants; there must be one for each of the "
                f"{len(STRENGTHS)} strengths"
            )
    return _bound(function, *constants)


@cache
def _bound(function: Callable, *constants: tuple[float, ...]) -> Corruption:
    return lambda key, image, strength: function(key, image, strength, *constants)


def _at(values: tuple[float, ...], strength: Array) -> Array:
    return jnp.asarray(values, jnp.float32)[strength - 1]


def _pixels(image: Array) -> float:
    """How many pixels of this image are one of a 32x32 image."""
    return min(image.shape[:2]) / REFERENCE_SIDE


def _reach(distance: float) -> int:
    return int(np.ceil(distance)) + 1


def _grey(image: Array) -> Array:
    """[h,w,1]."""
    weights = jnp.array(LUMA) if image.shape[-1] == 3 else jnp.full(image.shape[-1], 1 / image.shape[-1])
    return (image @ weights)[:, :, None]


def _blurred(image: Array, points: Array, weights: Array, reach: int) -> Array:
    """The mean, by weights [P], of what lies at points [P,2] (down, right) from each pixel; none is farther
    than `reach` - 1. Between pixels the image is bilinear."""
    near = _between(points + reach, 2 * reach + 1)  # [P,2,S]
    return _correlated(image, jnp.einsum("p,py,px->yx", weights, near[:, 0], near[:, 1]))


def _gaussian_blurred(image: Array, deviation: Array | float, most: float) -> Array:
    reach = _reach(3 * most)
    places = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * (places / deviation) ** 2)
    weights /= weights.sum()
    return _correlated(image, weights[:, None] * weights[None, :])


def _correlated(image: Array, kernel: Array) -> Array:
    """The image [h,w,c], mirrored beyond its border, correlated with a kernel [2r+1,2r+1].

    By Fourier transforms: each image has a kernel of its own, and `vmap` over the kernels of convolutions is
    slow on a CPU.
    """
    height, width, _ = image.shape
    reach = len(kernel) // 2
    filled = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    size = filled.shape[:2]
    waves = jnp.fft.rfft2(filled, axes=(0, 1)) * jnp.conj(jnp.fft.rfft2(kernel, size))[:, :, None]
    return jnp.fft.irfft2(waves, size, axes=(0, 1))[:height, :width]


def _sampled(image: Array, moves: Array) -> Array:
    """What lies at moves [h,w,2] (down, right) from each pixel, between pixels bilinear; at the border its
    last pixel goes on."""
    height, width, channels = image.shape
    places = jnp.indices((height, width)).astype(jnp.float32).transpose(1, 2, 0) + moves
    places = jnp.clip(places, 0.0, jnp.array([[[height - 1, width - 1]]], jnp.float32))
    low = jnp.floor(places)
    share = places - low
    row, column = low[..., 0].astype(jnp.int32), low[..., 1].astype(jnp.int32)
    flat = image.reshape(-1, channels)

    def at(down: int, right: int) -> Array:
        rows, columns = jnp.minimum(row + down, height - 1), jnp.minimum(column + right, width - 1)
        near = (share[..., 0] if down else 1 - share[..., 0]) * (
            share[..., 1] if right else 1 - share[..., 1]
        )
        return near[:, :, None] * flat[rows * width + columns]

    return at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)


def _between(places: Array, size: int) -> Array:
    """Weights [...,size] of the pixels of a line for places [...] between them."""
    clipped = jnp.clip(places, 0.0, size - 1.0)
    pixels = jnp.arange(size, dtype=jnp.float32).reshape((1,) * places.ndim + (size,))
    return jnp.maximum(1 - jnp.abs(clipped[..., None] - pixels), 0.0)


def _clouds(key: Array, height: int, width: int, decay: Array | float) -> Array:
    """Noise of many sizes [h,w] in [0,1]: grids of 2, 3, 5, 9, ... points a side, each weaker by `decay`."""
    sizes = [2**octave + 1 for octave in range(max(1, int(np.ceil(np.log2(max(height, width))))) + 1)]
    ends = np.cumsum([points**2 for points in sizes])
    drawn = jax.random.uniform(key, (ends[-1],))  # at once: a generator for each grid is long to compile
    total = jnp.zeros((height, width))
    for octave, (points, flat) in enumerate(zip(sizes, jnp.split(drawn, ends[:-1]))):
        down, right = (_between(jnp.linspace(0.0, points - 1.0, size), points) for size in (height, width))
        grid = flat.reshape(points, points)
        total += jnp.asarray(decay, jnp.float32) ** (-octave) * (down @ grid @ right.T)
    least, most = total.min(), total.max()
    return (total - least) / jnp.maximum(most - least, 1e-6)
