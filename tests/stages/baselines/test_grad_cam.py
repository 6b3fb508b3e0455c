"""Grad-CAM: by hand, step by step, and as captum computes it; the query that shares passes between methods."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.baselines.cam import Cam
from stages.baselines.grad_cam import GradCam, grad_cam
from stages.baselines.guided_grad_cam import GuidedGradCam
from stages.baselines.query import Query
from stages.baselines.registry import METHODS, Setting, build, layers_of
from stages.network import cut


class Small(nn.Module):
    """Two convolutions with a residual sum, pooling and two linear layers: nothing about its gradient is linear."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.relu1 = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.relu2 = nn.ReLU(inplace)
        self.hidden = nn.Linear(6 * 4, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.relu1(self.conv1(x))
        second = self.relu2(self.conv2(first) + first)
        pooled = F.adaptive_max_pool2d(second, 2).flatten(1)
        return self.head(F.relu(self.hidden(pooled)))


def network(inplace: bool = False) -> Small:
    torch.manual_seed(0)
    return Small(inplace).double().eval()


def images(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([[0, 1], [4, 2], [3, 3], [1, 0]])


def query(net: nn.Module, x: torch.Tensor, targets: torch.Tensor = TARGETS, **options: object) -> Query:
    return Query(cut(net, ["relu1", "relu2"], x[:1]), x, targets, **options)  # type: ignore[arg-type]


def hooks(net: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in net.modules() for kind in kinds)


def test_by_hand() -> None:
    activation = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # two channels of 1 x 2
    gradient = torch.tensor([[[[[1.0, 3.0]], [[-1.0, -1.0]]]]])  # means 2 and -1
    assert grad_cam(activation, gradient).tolist() == [[[[0.0, 5.0]]]]  # 2*1 - 3 = -1 is clipped; 2*2 + 1


def test_pooling_and_a_linear_layer_give_the_class_activation_map() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4, bias=False)
    ).double()
    x = images()
    answer = GradCam("1").maps(Query(cut(net.eval(), ["1"], x), x, torch.tensor([[2]] * 4)))
    cam = torch.einsum("k,bkhw->bhw", net[4].weight[2], net[:2](x)).clamp(min=0) / 36  # 36 = 6 x 6 pixels in the mean
    assert torch.allclose(answer[:, 0], cam, atol=1e-14)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layer", ["relu1", "relu2"])
@pytest.mark.parametrize("output", ["logits", "softmax"])
def test_is_the_slow_reference(layer: str, output: str, inplace: bool) -> None:
    """One image, one class at a time, through the network itself with a hook that keeps the activation."""
    net, x = network(), images()
    answer = GradCam(layer).maps(query(network(inplace), x, output=output))
    for i in range(len(x)):
        for r in range(2):
            kept: list[torch.Tensor] = []
            handle = net.get_submodule(layer).register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
            scores = net(x[i : i + 1])
            handle.remove()
            score = (scores if output == "logits" else scores.softmax(1))[0, TARGETS[i, r]]
            alpha = torch.autograd.grad(score, kept[0])[0][0].mean(dim=(1, 2))
            expected = sum(alpha[k] * kept[0][0, k] for k in range(6)).clamp(min=0)  # type: ignore[union-attr]
            assert torch.allclose(answer[i, r], expected, atol=1e-12)


def test_is_what_captum_computes() -> None:
    from captum.attr import LayerGradCam

    net, x = network(), images()
    answer = GradCam("relu2").maps(query(net, x))
    for r in range(2):
        expected = LayerGradCam(net, net.relu2).attribute(x, target=TARGETS[:, r], relu_attributions=True)
        assert torch.allclose(answer[:, r], expected[:, 0], atol=1e-12)


def test_a_batch_is_its_images_one_by_one() -> None:
    net, x = network(), images()
    whole = GradCam("relu2").maps(query(net, x))
    for i in range(len(x)):
        alone = GradCam("relu2").maps(query(net, x[i : i + 1], TARGETS[i : i + 1]))
        assert torch.allclose(whole[i], alone[0], atol=1e-12)


def test_nothing_is_left_behind_after_success_and_after_an_exception() -> None:
    net, x = network(), images()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    GradCam("relu2").maps(query(net, x))
    assert hooks(net) == 0

    asked = query(net, x)

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    handle = net.conv2.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        GradCam("relu1").maps(asked)
    handle.remove()
    assert hooks(net) == 0
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.allclose(GradCam("relu2").maps(asked), GradCam("relu2").maps(query(net, x)), atol=1e-12)


def test_the_top_classes_are_asked_when_none_are_named_and_passes_are_shared() -> None:
    net, x = network(), images()
    asked = Query(cut(net, ["relu2"], x), x, top=3)
    assert asked.targets.tolist() == net(x).topk(3, dim=1).indices.tolist()
    assert asked.layer_gradient("relu2") is asked.layer_gradient("relu2")
    other = asked.asking(TARGETS)
    assert other.activations is asked.activations
    assert torch.equal(GradCam("relu2").maps(other), GradCam("relu2").maps(query(net, x)))
    assert Query(cut(net, ["relu2"], x), x, top=99).targets.shape == (4, 5)  # five classes are all there are


@pytest.mark.parametrize("targets", [[[5]] * 4, [[-1]] * 4, [[0]], [0, 1, 2, 3]])
def test_targets_are_checked(targets: list) -> None:
    with pytest.raises(ValueError, match="class ids"):
        query(network(), images(), torch.tensor(targets))


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(LookupError, match="did you mean grad_cam"):
        build("gradcam", Setting())
    with pytest.raises(LookupError, match="not at 'relu9'"):
        query(network(), images()).activation("relu9")
    with pytest.raises(ValueError, match="'probability'"):
        query(network(), images(), output="probability")


def test_the_registry_names_classes_that_exist_and_their_layers() -> None:
    setting = ("first_conv", "last_conv")
    assert layers_of(["grad_cam", "grad_cam:relu1", "gradient", "chip"], setting) == ("last_conv", "relu1")
    assert set(layers_of(list(METHODS), setting)) == {"first_conv", "last_conv"}
    with pytest.raises(ValueError, match="two layers"):
        layers_of(["refined_chip"], ["last_conv"])
    with pytest.raises(ValueError, match="takes no layer"):
        layers_of(["gradient:relu1"], setting)


def gap_network() -> nn.Module:
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)
        )
        .double()
        .eval()
    )


def test_cam_is_the_final_layers_weights_and_grad_cams_positive_part_is_its_own() -> None:
    net, x = gap_network(), images()
    asked = Query(cut(net, ["1"], x), x, TARGETS.clamp(max=3))
    maps = Cam("1").maps(asked)
    for i in range(4):
        for r in range(2):
            weight = net[5].weight[int(asked.targets[i, r])]
            assert torch.allclose(maps[i, r], sum(weight[k] * net[:2](x)[i, k] for k in range(7)), atol=1e-14)
    assert torch.allclose(GradCam("1").maps(asked), maps.clamp(min=0) / 36, atol=1e-14)


def test_cam_refuses_networks_it_is_not_defined_for_and_names_what_is_in_the_way() -> None:
    x = images()
    for layer, reason in [("relu1", "read by 2 calls"), ("relu2", "adaptivemaxpool2d")]:
        with pytest.raises(ValueError, match=reason):
            Cam(layer).check(cut(network(), [layer], x))
    deep = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )
    with pytest.raises(ValueError, match="there is relu"):
        Cam("1").check(cut(deep.double().eval(), ["1"], x))
    Cam("1").check(cut(gap_network(), ["1"], x))


def test_guided_grad_cam_is_captums_where_relus_are_modules() -> None:
    import warnings

    from captum.attr import GuidedGradCam as Captum

    net, x = gap_network(), images()
    asked = Query(cut(net, ["1"], x), x, TARGETS.clamp(max=3))
    colours = GuidedGradCam("1").colours(asked)
    for r in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = Captum(net, net[1]).attribute(x, target=asked.targets[:, r], interpolate_mode="bilinear")
        assert torch.allclose(colours[:, r], expected, atol=1e-13)
    assert torch.equal(GuidedGradCam("1").maps(asked), colours.clamp(min=0).amax(dim=2))
