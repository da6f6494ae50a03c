"""I3D in PyTorch, written from the paper's figure 3, to compare ours with: random weights, saved as
the public files are. Needs torch, which the tests otherwise do not."""

import torch
from torch import nn
from torch.nn import functional

MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")


class Pad(nn.Module):
    def __init__(self, window: list[int], stride: list[int]):
        super().__init__()
        self.window, self.stride = window, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros: list[int] = []
        for dim in range(3):
            axis = 2 - dim  # from the last
            size, side, step = x.shape[2 + axis], self.window[axis], self.stride[axis]
            rest = size % step
            total = max(side - (step if rest == 0 else rest), 0)
            zeros += [total // 2, total - total // 2]
        return functional.pad(x, zeros)


class FixedPad(nn.Module):
    def __init__(self, window: list[int], stride: list[int]):
        super().__init__()
        totals = [max(a - b, 0) for a, b in zip(window, stride)]
        self.zeros = [n for total in totals[::-1] for n in (total // 2, total - total // 2)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x, self.zeros)


class Unit(nn.Module):
    def __init__(self, inputs, outputs, side, step=1, pad=Pad, norm=True):
        super().__init__()
        self.pad = pad([side] * 3, [step] * 3)
        self.conv3d = nn.Conv3d(inputs, outputs, side, step, bias=not norm)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3) if norm else nn.Identity()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv3d(self.pad(x)))
        return torch.relu(x) if self.norm else x


class Pool(nn.Module):
    def __init__(self, window, stride, pad=Pad):
        super().__init__()
        self.pad = pad(list(window), list(stride))
        self.pool = nn.MaxPool3d(window, stride, ceil_mode=pad is FixedPad)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.pad(x))


class Mixed(nn.Module):
    def __init__(self, inputs, widths, pad):
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit(inputs, b0, 1, pad=pad)
        self.b1a, self.b1b = Unit(inputs, b1a, 1, pad=pad), Unit(b1a, b1b, 3, pad=pad)
        self.b2a, self.b2b = Unit(inputs, b2a, 1, pad=pad), Unit(b2a, b2b, 3, pad=pad)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1), pad), Unit(inputs, b3b, 1, pad=pad)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b1, b2 = self.b1b(self.b1a(x)), self.b2b(self.b2a(x))
        return torch.cat([self.b0(x), b1, b2, self.b3b(self.b3a(x))], dim=1)


class I3D(nn.Module):
    """`forward` is called as StyleGAN-V's TorchScript is."""

    def __init__(self, stem, blocks, classes, pad=Pad):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, stem[0], 7, 2, pad)
        self.pool_2 = Pool((1, 3, 3), (1, 2, 2), pad)
        self.Conv3d_2b_1x1 = Unit(stem[0], stem[1], 1, pad=pad)
        self.Conv3d_2c_3x3 = Unit(stem[1], stem[2], 3, pad=pad)
        self.pool_3 = Pool((1, 3, 3), (1, 2, 2), pad)
        self.pool_4 = Pool((3, 3, 3), (2, 2, 2), pad)
        self.pool_5 = Pool((2, 2, 2), (2, 2, 2), pad)
        inputs = stem[2]
        for name, widths in zip(MIXED, blocks):
            setattr(self, f"Mixed_{name}", Mixed(inputs, widths, pad))
            inputs = widths[0] + widths[2] + widths[4] + widths[5]
        self.average = nn.AvgPool3d((2, 7, 7), 1)
        self.logits = Unit(inputs, classes, 1, pad=pad, norm=False)

    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = True,
        resize: bool = True,
        return_features: bool = False,
    ) -> torch.Tensor:
        if rescale:
            x = 2 * x / 255 - 1
        x = self.Conv3d_2b_1x1(self.pool_2(self.Conv3d_1a_7x7(x)))
        x = self.pool_3(self.Conv3d_2c_3x3(x))
        x = self.pool_4(self.Mixed_3c(self.Mixed_3b(x)))
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        x = self.Mixed_5c(self.Mixed_5b(self.pool_5(x)))
        x = self.logits(self.average(x)).mean(dim=[2, 3, 4])
        return x if return_features else torch.softmax(x, dim=1)


def random_i3d(stem, blocks, classes, seed: int = 0, pad=Pad) -> I3D:
    """A network in evaluation whose batch norms do something, and whose features are no noise."""
    torch.manual_seed(seed)
    net = I3D(stem, blocks, classes, pad).eval()
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif name.endswith("bn.weight"):
            value.uniform_(0.8, 1.2)
        elif name.endswith("conv3d.weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
    return net
