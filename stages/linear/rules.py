"""Which rule freezes which kind of call."""

from __future__ import annotations

from stages.linear.affine import BatchNorm, Moved, Padded, Rule, Scale, Sum, Weighted
from stages.linear.decisions import Curve, Gate, InstanceNorm, Winner
from stages.linear.sites import OPERANDS, WEIGHTED

_MOVED = (
    "flatten view reshape permute transpose squeeze unsqueeze getitem chunk split unbind contiguous clone float "
    "double to cat stack mean sum neg identity unfold fold roll flip expand repeat "
    "avgpool1d avgpool2d adaptiveavgpool1d adaptiveavgpool2d pixelshuffle pixelunshuffle channelshuffle "
    "interpolate upsample upsamplingnearest2d upsamplingbilinear2d "
    "dropout dropout1d dropout2d dropout3d alphadropout featurealphadropout featuredropout stochasticdepth "
    "zeropad2d reflectionpad1d reflectionpad2d replicationpad2d circularpad2d"
)


def rules(taylor: bool) -> dict[str, Rule]:
    """The rule of every known kind of call."""
    weighted, gate, curve = Weighted(), Gate(), Curve(taylor)
    found: dict[str, Rule] = dict.fromkeys(_MOVED.split(), Moved())
    found |= dict.fromkeys(("add", "sub", "rsub"), Sum())
    found |= dict.fromkeys(("mul", "div", "truediv", "matmul"), Scale())
    found |= dict.fromkeys(("pad", "constantpad2d"), Padded())
    found |= {kind: weighted for kind in OPERANDS if OPERANDS[kind] is WEIGHTED}
    found |= dict.fromkeys(("batchnorm", "batchnorm1d", "batchnorm2d"), BatchNorm())
    found |= dict.fromkeys(("instancenorm", "instancenorm1d", "instancenorm2d"), InstanceNorm())
    found |= dict.fromkeys(("relu", "relu6", "hardtanh", "leakyrelu", "prelu"), gate)
    found |= dict.fromkeys(("sigmoid", "tanh"), curve)
    found |= dict.fromkeys(("maxpool2d", "adaptivemaxpool2d"), Winner())
    return found
