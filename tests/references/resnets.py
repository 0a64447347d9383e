"""CIFAR ResNets, Wide ResNets and VGGs in float64 NumPy, from PyTorch's names and axes.

Written from the papers and from the layout of RepDistiller: {name: shape} of a state dict, and the forward
pass at test time of images [B,c,h,w], which returns (logits, embedding, features after each stage).
"""

import numpy as np

VGG = {
    8: [[64], [128], [256], [512], [512]],
    11: [[64], [128], [256, 256], [512, 512], [512, 512]],
    13: [[64, 64], [128, 128], [256, 256], [512, 512], [512, 512]],
    16: [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3],
    19: [[64, 64], [128, 128], [256] * 4, [512] * 4, [512] * 4],
}


# --- what a state dict holds --------------------------------------------------------------------------


def norm_shapes(name, channels):
    return {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def linear_shapes(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def resnet_shapes(depth, stem, widths, channels=3, classes=100):
    shapes = {"conv1.weight": (stem, channels, 3, 3), **norm_shapes("bn1", stem)}
    before = stem
    for stage, width in enumerate(widths, start=1):
        for block in range((depth - 2) // 6):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (width, before, 3, 3), **norm_shapes(f"{name}.bn1", width)}
            shapes |= {f"{name}.conv2.weight": (width, width, 3, 3), **norm_shapes(f"{name}.bn2", width)}
            if block == 0 and (stage > 1 or before != width):
                shapes |= {f"{name}.downsample.0.weight": (width, before, 1, 1)}
                shapes |= norm_shapes(f"{name}.downsample.1", width)
            before = width
    return shapes | linear_shapes("fc", before, classes)


def wide_resnet_shapes(depth, width, channels=3, classes=100):
    shapes = {"conv1.weight": (16, channels, 3, 3)}
    before = 16
    for stage, features in enumerate((16 * width, 32 * width, 64 * width), start=1):
        for block in range((depth - 4) // 6):
            name = f"block{stage}.layer.{block}"
            shapes |= norm_shapes(f"{name}.bn1", before) | norm_shapes(f"{name}.bn2", features)
            shapes[f"{name}.conv1.weight"] = (features, before, 3, 3)
            shapes[f"{name}.conv2.weight"] = (features, features, 3, 3)
            if before != features:
                shapes[f"{name}.convShortcut.weight"] = (features, before, 1, 1)
            before = features
    return shapes | norm_shapes("bn1", before) | linear_shapes("fc", before, classes)


def vgg_shapes(depth, channels=3, classes=100):
    shapes, before = {}, channels
    for stage, widths in enumerate(VGG[depth]):
        for number, width in enumerate(widths):
            shapes[f"block{stage}.{3 * number}.weight"] = (width, before, 3, 3)
            shapes[f"block{stage}.{3 * number}.bias"] = (width,)
            shapes |= norm_shapes(f"block{stage}.{3 * number + 1}", width)
            before = width
    return shapes | linear_shapes("classifier", before, classes)


def drawn(shapes, seed=0):
    """A state dict of these shapes in which no two tensors and no channels are alike."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            tensors[name] = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("bias", "mean")):
            tensors[name] = 0.3 * rng.normal(size=shape)
        else:
            tensors[name] = rng.uniform(0.5, 1.5, shape)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


# --- what it computes ---------------------------------------------------------------------------------


def conv(x, weight, stride=1):
    """Cross-correlation, padded on all sides by half the kernel."""
    size = weight.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return np.einsum("bchwij,dcij->bdhw", windows[:, :, ::stride, ::stride], weight, optimize=True)


def norm(x, tensors, name):
    mean, var, weight, bias = (
        np.float64(tensors[f"{name}.{leaf}"])[:, None, None]
        for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def relu(x):
    return np.maximum(x, 0)


def read(x, features, tensors, name):
    embedding = x.mean(axis=(2, 3))
    return embedding @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"], embedding, features


def resnet(tensors, x, depth):
    x = relu(norm(conv(x, tensors["conv1.weight"]), tensors, "bn1"))
    features = [x]
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = relu(norm(conv(x, tensors[f"{name}.conv1.weight"], stride), tensors, f"{name}.bn1"))
            y = norm(conv(y, tensors[f"{name}.conv2.weight"]), tensors, f"{name}.bn2")
            if f"{name}.downsample.0.weight" in tensors:
                x = conv(x, tensors[f"{name}.downsample.0.weight"], stride)
                x = norm(x, tensors, f"{name}.downsample.1")
            x = relu(x + y)
        features.append(x)
    return read(x, features, tensors, "fc")


def wide_resnet(tensors, x, depth):
    x = conv(x, tensors["conv1.weight"])
    features = [x]
    for stage in (1, 2, 3):
        for block in range((depth - 4) // 6):
            name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            active = relu(norm(x, tensors, f"{name}.bn1"))
            y = conv(active, tensors[f"{name}.conv1.weight"], stride)
            y = conv(relu(norm(y, tensors, f"{name}.bn2")), tensors[f"{name}.conv2.weight"])
            if f"{name}.convShortcut.weight" in tensors:
                x = conv(active, tensors[f"{name}.convShortcut.weight"], stride)
            x = x + y
        features.append(x)
    return read(relu(norm(x, tensors, "bn1")), features, tensors, "fc")


def vgg(tensors, x, depth):
    features = []
    for stage, widths in enumerate(VGG[depth]):
        if stage > 0 and min(x.shape[2:]) > 4:
            rows, columns = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
            corners = [x[:, :, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1)]
            x = np.max(corners, axis=0)
        for number in range(len(widths)):
            name = f"block{stage}.{3 * number}"
            x = conv(x, tensors[f"{name}.weight"]) + tensors[f"{name}.bias"][:, None, None]
            x = relu(norm(x, tensors, f"block{stage}.{3 * number + 1}"))
        features.append(x)
    return read(x, features, tensors, "classifier")
