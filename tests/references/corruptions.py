"""Corruptions written out a pixel, a block, a frequency at a time, in float64."""

import colorsys
import math

import numpy as np

# ITU-T T.81, tables K.1 and K.2, in rows.
LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
LUMINANCE = np.array(LUMINANCE.split(), int).reshape(8, 8)


def contrast(image, factor):
    found = np.array(image, np.float64)
    for c in range(found.shape[-1]):
        mean = found[..., c].mean()
        found[..., c] = mean + factor * (found[..., c] - mean)
    return found


def brightness(image, added):
    """By way of hue, saturation and value."""
    found = np.array(image, np.float64)
    for place in np.ndindex(found.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*found[place])
        found[place] = colorsys.hsv_to_rgb(h, s, min(v + added, 1))
    return found


def pixelate(image, share):
    """Many points in every pixel, averaged over the larger pixel that its centre lies in."""
    fine = 20 * 39
    height, width = image.shape[:2]
    rows, columns = (int(share * size + 1e-9) for size in (height, width))

    def along(values, size, number):  # the first axis
        points = (np.arange(size * fine) + 0.5) / fine
        cell = (points * number / size).astype(int)
        means = [values[points[cell == one].astype(int)].mean(axis=0) for one in range(number)]
        return np.stack([means[int((pixel + 0.5) * number / size)] for pixel in range(size)])

    found = along(np.asarray(image, np.float64), height, rows)
    return along(found.swapaxes(0, 1), width, columns).swapaxes(0, 1)


def jpeg_of_grey(image, quality):
    """Sides are multiples of 8; the cosine transform is the sum that defines it."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    table = np.clip((LUMINANCE * scale + 50) // 100, 1, 255)
    found = np.empty(image.shape[:2])
    wave = [[math.cos((2 * x + 1) * u * math.pi / 16) for x in range(8)] for u in range(8)]
    c = [math.sqrt(1 / 8)] + [math.sqrt(2 / 8)] * 7
    basis = np.array([[c[u] * wave[u][x] for x in range(8)] for u in range(8)])
    for top, left in np.ndindex(image.shape[0] // 8, image.shape[1] // 8):
        rows, columns = slice(8 * top, 8 * top + 8), slice(8 * left, 8 * left + 8)
        block = np.round(255 * np.asarray(image[rows, columns, 0], np.float64)) - 128
        waves = np.array([[(np.outer(basis[u], basis[v]) * block).sum() for v in range(8)] for u in range(8)])
        coded = np.sign(waves) * np.floor(np.abs(waves / table) + 0.5 + 1e-9) * table  # halves away from 0
        back = sum(coded[u, v] * np.outer(basis[u], basis[v]) for u in range(8) for v in range(8))
        found[rows, columns] = np.clip(np.round(back + 128), 0, 255) / 255
    return found[..., None]
