"""A small network that keeps the length of what it transports, so that layers of norm 1 leave it a signal.

Sorting activations as in Anil, Lucas & Grosse, "Sorting Out Lipschitz Function Approximation" (ICML 2019, arXiv
1811.05381), and invertible downsampling in place of strides and pools, as in Li, Haque, Anil, Lucas, Grosse &
Jacobsen, "Preventing Gradient Attenuation in Lipschitz Constrained Convolutional Networks" (NeurIPS 2019, arXiv
1911.00937).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from spectralnorm.layers.blocks import InvertibleDownsampling
from spectralnorm.robustness.attacks import check_count

from .activations import activation_of, label_of
from .building import check_image_shape


def lipschitz_cnn(
    input_shape: Sequence[int],
    classes: int,
    *,
    width: int = 32,
    batch_norm: bool = False,
    activation: str = "maxmin",
) -> nn.Sequential:
    """Build three 3x3 convolutions, each behind a downsampling but for the first, and two linear layers.

    Downsampling moves blocks of 2x2 cells into channels. Images of odd size get a row or column of zeros first.

    Args:
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits, at least 2.
        width: Channels of the first convolution, even; the next two have twice as many.
        batch_norm: Whether a BatchNorm follows each convolution, which then has no bias.
        activation: "maxmin", "groupsort" or "relu".

    Returns:
        A network from (N, C, H, W) to (N, classes), initialised from torch's global generator.

    Raises:
        ValueError: If the shape is not (C, H, W), there are fewer than two classes, or the width does not fit the
            activation.

    Reference:
        Li et al. 2019, section 4.

    Example:
        >>> import torch
        >>> model = lipschitz_cnn((1, 28, 28), classes=10)
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> [name for name, _ in model.named_children()][:5]
        ['conv1', 'sort1', 'down2', 'conv2', 'sort2']
    """
    channels, height, width_in = check_image_shape(input_shape)
    check_count("classes", classes, minimum=2)
    check_count("width", width)
    label = label_of(activation)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, out in enumerate((width, 2 * width, 2 * width), start=1):
        if index > 1:
            if height % 2 or width_in % 2:
                layers[f"pad{index}"] = nn.ZeroPad2d((0, width_in % 2, 0, height % 2))
            layers[f"down{index}"] = InvertibleDownsampling(2)
            channels, height, width_in = 4 * channels, (height + 1) // 2, (width_in + 1) // 2
        layers[f"conv{index}"] = nn.Conv2d(channels, out, 3, padding=1, bias=not batch_norm)
        if batch_norm:
            layers[f"bn{index}"] = nn.BatchNorm2d(out)
        layers[f"{label}{index}"] = activation_of(activation, out)
        channels = out
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels * height * width_in, 4 * width)
    layers[f"{label}4"] = activation_of(activation, 4 * width)
    layers["fc2"] = nn.Linear(4 * width, classes)
    return nn.Sequential(layers)
