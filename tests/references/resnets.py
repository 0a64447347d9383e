"""CIFAR ResNets, Wide ResNets, VGGs and DenseNets in float64 NumPy, from PyTorch's names and axes.

Written from the papers and from the layouts of RepDistiller and, of DenseNets, of torchvision: {name: shape}
of a state dict, and the forward pass at test time of images [B,c,h,w], which returns (logits, embedding,
features after each stage).
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


def bottleneck_shapes(depth, width, channels=3, classes=100):
    """Three stages of bottlenecks, whose 3x3 convolutions have `width` times 16, 32 and 64 channels."""
    shapes, before = {"conv1.weight": (16, channels, 3, 3), **norm_shapes("bn1", 16)}, 16
    for stage, base in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 9):
            name, inner, outer = f"layer{stage}.{block}", width * base, 4 * base
            rows = ((inner, before, 1), (inner, inner, 3), (outer, inner, 1))
            for number, (outputs, inputs, size) in enumerate(rows, start=1):
                shapes[f"{name}.conv{number}.weight"] = (outputs, inputs, size, size)
                shapes |= norm_shapes(f"{name}.bn{number}", outputs)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (outer, before, 1, 1)
                shapes |= norm_shapes(f"{name}.downsample.1", outer)
            before = outer
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


def vgg_shapes(depth, channels=3, classes=100, dense=0):
    shapes, before = {}, channels
    for stage, widths in enumerate(VGG[depth]):
        for number, width in enumerate(widths):
            shapes[f"block{stage}.{3 * number}.weight"] = (width, before, 3, 3)
            shapes[f"block{stage}.{3 * number}.bias"] = (width,)
            shapes |= norm_shapes(f"block{stage}.{3 * number + 1}", width)
            before = width
    if not dense:
        return shapes | linear_shapes("classifier", before, classes)
    shapes |= linear_shapes("classifier.0", before, dense) | linear_shapes("classifier.3", dense, dense)
    return shapes | linear_shapes("classifier.6", dense, classes)


def densenet_shapes(blocks, growth, bottleneck, compression, channels=3, classes=100):
    """As published for CIFAR: the stem is a convolution to 2 * growth channels, or 16 without bottlenecks."""
    before = 2 * growth if bottleneck else 16
    shapes = {"features.conv0.weight": (before, channels, 3, 3)}
    for stage, layers in enumerate(blocks, start=1):
        if stage > 1:
            name, after = f"features.transition{stage - 1}", int(before * compression)
            shapes |= {f"{name}.conv.weight": (after, before, 1, 1), **norm_shapes(f"{name}.norm", before)}
            before = after
        for number in range(1, layers + 1):
            name = f"features.denseblock{stage}.denselayer{number}"
            shapes |= norm_shapes(f"{name}.norm1", before)
            if bottleneck:
                shapes[f"{name}.conv1.weight"] = (4 * growth, before, 1, 1)
                shapes |= norm_shapes(f"{name}.norm2", 4 * growth)
                shapes[f"{name}.conv2.weight"] = (growth, 4 * growth, 3, 3)
            else:
                shapes[f"{name}.conv1.weight"] = (growth, before, 3, 3)
            before += growth
    shapes |= norm_shapes(f"features.norm{len(blocks) + 1}", before)
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


def halve(x):
    """The maximum over 2x2; a last odd row or column is left out."""
    rows, columns = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    return np.max([x[:, :, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1)], axis=0)


def read(x, features, tensors, name):
    embedding = x.mean(axis=(2, 3)) if x.ndim == 4 else x
    return embedding @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"], embedding, features


def resnet(tensors, x, depth, bottleneck=False):
    num_layers, strided = (3, 2) if bottleneck else (2, 1)  # of a block, and which of them has its stride
    x = relu(norm(conv(x, tensors["conv1.weight"]), tensors, "bn1"))
    features = [x]
    for stage in (1, 2, 3):
        for block in range((depth - 2) // (3 * num_layers)):
            name, stride, y = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1, x
            for layer in range(1, num_layers + 1):
                y = conv(y, tensors[f"{name}.conv{layer}.weight"], stride if layer == strided else 1)
                y = norm(y, tensors, f"{name}.bn{layer}")
                y = relu(y) if layer < num_layers else y
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
    dense, features = "classifier.0.weight" in tensors, []
    for stage, widths in enumerate(VGG[depth]):
        if stage > 0 and min(x.shape[2:]) > (1 if dense else 4):
            x = halve(x)
        for number in range(len(widths)):
            name = f"block{stage}.{3 * number}"
            x = conv(x, tensors[f"{name}.weight"]) + tensors[f"{name}.bias"][:, None, None]
            x = relu(norm(x, tensors, f"block{stage}.{3 * number + 1}"))
        features.append(x)
    if not dense:
        return read(x, features, tensors, "classifier")
    x = (halve(x) if min(x.shape[2:]) > 1 else x).mean(axis=(2, 3))
    for name in ("classifier.0", "classifier.3"):
        x = relu(x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"])
    return read(x, features, tensors, "classifier.6")


def densenet(tensors, x, blocks):
    x = conv(x, tensors["features.conv0.weight"])
    features = [x]
    for stage, layers in enumerate(blocks, start=1):
        if stage > 1:
            name = f"features.transition{stage - 1}"
            x = conv(relu(norm(x, tensors, f"{name}.norm")), tensors[f"{name}.conv.weight"])
            rows, columns = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
            x = np.mean([x[:, :, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1)], axis=0)
        for number in range(1, layers + 1):
            name = f"features.denseblock{stage}.denselayer{number}"
            new = conv(relu(norm(x, tensors, f"{name}.norm1")), tensors[f"{name}.conv1.weight"])
            if f"{name}.conv2.weight" in tensors:
                new = conv(relu(norm(new, tensors, f"{name}.norm2")), tensors[f"{name}.conv2.weight"])
            x = np.concatenate([x, new], axis=1)
        features.append(x)
    last = relu(norm(x, tensors, f"features.norm{len(blocks) + 1}"))
    return read(last, features, tensors, "classifier")
