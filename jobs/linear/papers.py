"""The paper's residual shares (its Tables 3 and 4), and whether a network has the weights they were measured with."""

from __future__ import annotations

from pipeline.errors import RaylensError
from pipeline.models import ModelSpec
from pipeline.vision import torchvision

# architecture -> (percent of the top-1 logit, standard deviation over 100 ILSVRC validation images where it is told).
PAPER: dict[str, tuple[float, float | None]] = {
    "alexnet": (78.5, 15.8),
    "squeezenet1_0": (80.7, 11.5), "squeezenet1_1": (84.3, 11.0),
    "inception_v3": (91.6, 8.0),
    "resnet18": (80.5, None), "resnet34": (83.7, None), "resnet50": (82.0, None), "resnet101": (80.2, None),
    "resnet152": (81.1, None),
    "densenet121": (94.6, None), "densenet161": (95.0, None), "densenet169": (94.4, None), "densenet201": (94.0, None),
    "vgg11": (82.2, None), "vgg13": (82.1, None), "vgg16": (84.2, None), "vgg19": (85.5, None),
    "vgg11_bn": (84.5, None), "vgg13_bn": (85.1, None), "vgg16_bn": (86.2, None), "vgg19_bn": (85.8, None),
}  # fmt: skip
SPREADS = (
    "Where the paper gives a range of deviations only, none is shown: ResNet 13 to 17, DenseNet 4 to 5, VGG 11 to 14."
)
MEMORY = {"vgg19": 58}  # GB in the paper's Table 1, which does not say of how many images


def same_weights(spec: ModelSpec) -> bool:
    """Are these torchvision's first weights of the architecture, which the paper's figures were measured with?

    By their name, or by a file that has the name they are published under.
    """
    if spec.name not in PAPER or spec.weights is None or spec.num_classes not in (None, 1000):
        return False
    try:
        enum = torchvision.models.get_model_weights(spec.name)
    except (RaylensError, ValueError):
        return False
    first = enum["IMAGENET1K_V1"]
    given = str(spec.weights).rpartition(".")[2]
    if given in enum.__members__:
        return bool(enum[given] is first)
    return str(spec.weights).split("?")[0].rpartition("/")[2] == first.url.rpartition("/")[2]
