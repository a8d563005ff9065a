"""What residual networks are made of: two blocks, two shortcuts, and branches that are dropped at random.

Without normalization each block about doubles the mean square of what it gets, so that 54 of them start with scores of
1e8: nothing here makes up for it, as all arms have the same weights. A smaller ``weight_std`` does.

References
----------
He, Zhang, Ren and Sun 2016, :arxiv:`1512.03385`. Huang et al. 2016, :arxiv:`1603.09382`, equation 4: stochastic depth.
Goyal et al. 2017, :arxiv:`1706.02677`, section 5.1: the weight of the last normalization of a branch starts at 0.
"""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own habit

from batchnorm.lab.models.recipe import Recipe

#: From inputs, outputs and stride to what the shortcut does; None: nothing.
Shortcut = Callable[[Recipe, int, int, int], nn.Module | None]


class StochasticDepth(nn.Module):
    """Drop the branch of an example, and divide those that are kept by the probability to keep them.

    In evaluation mode it does nothing. (The paper drops a branch for the whole mini-batch and multiplies in evaluation:
    the same in the mean.)

    Parameters
    ----------
    drop_prob : float
        Probability to drop, in [0, 1).
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """From branches (N, C, H, W) to the same, some of them zero."""
        if not self.training:
            return x
        keep_prob = 1.0 - self.drop_prob
        return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep_prob).div_(keep_prob)

    def extra_repr(self) -> str:
        """Return the probability."""
        return f"drop_prob={self.drop_prob:g}"


class PaddedShortcut(nn.Module):
    """The shortcut without parameters (option A of the paper): every second position, and channels of zeros behind.

    Parameters
    ----------
    stride : int
        1 keeps every position.
    extra : int
        How many channels are added.
    """

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        """From (N, C, H, W) to (N, C + extra, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"stride={self.stride}, extra={self.extra}"


def padded(_recipe: Recipe, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """Make the shortcut of option A: the identity, with zeros for what it lacks."""
    return None if stride == 1 and inputs == outputs else PaddedShortcut(stride, outputs - inputs)


def projected(recipe: Recipe, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """Make the shortcut of option B: a 1x1 convolution and its normalization where sizes change."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(recipe.conv(inputs, outputs, 1, stride), *recipe.normalization.spatial(outputs))


class Block(nn.Module):
    """What the two blocks share: the shortcut, and what goes around the branch.

    Parameters
    ----------
    recipe : Recipe
        Normalization and activation.
    inputs, width : int
        Channels before, and of the 3x3 convolutions.
    stride : int
        Of the block.
    drop_prob : float
        Of its stochastic depth; 0 for none.
    shortcut : callable
        `padded` or `projected`.
    """

    expansion: ClassVar[int]
    last: ClassVar[tuple[str, str]]  # names of the convolution and the normalization that end the branch

    def __init__(
        self, recipe: Recipe, inputs: int, width: int, stride: int, drop_prob: float, shortcut: Shortcut
    ) -> None:
        super().__init__()
        self._make_branch(recipe, inputs, width, stride)
        # Nothing where nothing is dropped: the addition then fuses into the normalization (`batchnorm.convert`).
        self.stochastic_depth = StochasticDepth(drop_prob) if drop_prob else None
        self.downsample = shortcut(recipe, inputs, width * self.expansion, stride)

    def _make_branch(self, recipe: Recipe, inputs: int, width: int, stride: int) -> None:
        raise NotImplementedError

    def around(self, x: Tensor, branch: Tensor) -> Tensor:
        """Add the shortcut of ``x`` to the branch."""
        if self.stochastic_depth is not None:
            branch = self.stochastic_depth(branch)
        return branch + (x if self.downsample is None else self.downsample(x))


class BasicBlock(Block):
    """Two 3x3 convolutions and the shortcut around them."""

    expansion = 1
    last = ("conv2", "bn2")

    def _make_branch(self, recipe: Recipe, inputs: int, width: int, stride: int) -> None:
        self.conv1 = recipe.conv(inputs, width, 3, stride)
        self.bn1 = recipe.norm(width)
        self.act1 = recipe.act()
        self.conv2 = recipe.conv(width, width, 3)
        self.bn2 = recipe.norm(width)
        self.act2 = recipe.act()

    def forward(self, x: Tensor) -> Tensor:
        """From (N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        y: Tensor = self.act2(self.around(x, branch))
        return y


class Bottleneck(Block):
    """A 1x1, a 3x3 and a 1x1 convolution, and the shortcut around them; the 3x3 one has the stride."""

    expansion = 4
    last = ("conv3", "bn3")

    def _make_branch(self, recipe: Recipe, inputs: int, width: int, stride: int) -> None:
        self.conv1 = recipe.conv(inputs, width, 1)
        self.bn1 = recipe.norm(width)
        self.act1 = recipe.act()
        self.conv2 = recipe.conv(width, width, 3, stride)
        self.bn2 = recipe.norm(width)
        self.act2 = recipe.act()
        self.conv3 = recipe.conv(width, width * self.expansion, 1)
        self.bn3 = recipe.norm(width * self.expansion)
        self.act3 = recipe.act()

    def forward(self, x: Tensor) -> Tensor:
        """From (N, inputs, H, W) to (N, 4 width, H / stride, W / stride)."""
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.act2(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        y: Tensor = self.act3(self.around(x, branch))
        return y


def stages(
    recipe: Recipe, block: type[Block], inputs: int, widths: tuple[int, ...], depths: tuple[int, ...], kind: Shortcut
) -> list[nn.Sequential]:
    """Make the stages of a network, each but the first at half the size of the one before.

    Parameters
    ----------
    recipe : Recipe
        ``stochastic_depth`` is the probability to drop the last block; it falls linearly to the first (linear decay).
    block : type
        Of the blocks.
    inputs : int
        Channels before the first.
    widths, depths : tuple of int
        Channels, before the expansion of the block, and blocks of each stage.
    kind : callable
        The shortcuts.

    Returns
    -------
    list of Sequential
    """
    made, done, total = [], 0, sum(depths)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        blocks = []
        for index in range(depth):
            done += 1
            drop_prob = recipe.stochastic_depth * done / total
            blocks.append(block(recipe, inputs, width, 2 if stage and not index else 1, drop_prob, kind))
            inputs = width * block.expansion
        made.append(nn.Sequential(*blocks))
    return made


def zero_last(network: nn.Module) -> None:
    """Set the last weight in each branch to 0, that of its normalization: each block starts as its shortcut.

    Without normalization it is that of the convolution, the first rule of Fixup (Zhang, Dauphin and Ma 2019,
    :arxiv:`1901.09321`): otherwise the variance doubles in every block, and training begins at losses of thousands.
    """
    for block in network.modules():
        if isinstance(block, Block):
            convolution, normalization = (getattr(block, name) for name in block.last)
            nn.init.zeros_((convolution if isinstance(normalization, nn.Identity) else normalization).weight)
