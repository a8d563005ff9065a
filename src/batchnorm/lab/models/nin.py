"""Network in Network: convolutions with two of 1x1 behind each, and a mean over positions for each class.

References
----------
Lin, Chen and Yan 2014, :arxiv:`1312.4400`, and the authors' network for CIFAR-10 (966,986 parameters).
"""

from torch import Tensor, nn

from batchnorm.lab.models.recipe import Recipe


class NIN(nn.Module):
    """Three blocks of one convolution and two of 1x1; dropout behind the pools of the first two.

    The last convolution gives the scores, without normalization and nonlinearity. The authors have a ReLU there, for
    which a score of a class cannot fall below zero.

    Parameters
    ----------
    recipe : Recipe
        ``width`` multiplies all channels.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, _, _ = recipe.image("nin")
        unit, wide, narrow, slim = recipe.unit, recipe.scaled(192), recipe.scaled(160), recipe.scaled(96)
        self.block1 = nn.Sequential(unit(inputs, wide, 5), unit(wide, narrow, 1), unit(narrow, slim, 1))
        self.pool1 = nn.MaxPool2d(3, 2, padding=1)
        self.dropout1 = nn.Dropout(recipe.dropout)
        self.block2 = nn.Sequential(unit(slim, wide, 5), unit(wide, wide, 1), unit(wide, wide, 1))
        self.pool2 = nn.AvgPool2d(3, 2, padding=1)
        self.dropout2 = nn.Dropout(recipe.dropout)
        self.block3 = nn.Sequential(unit(wide, wide, 3), unit(wide, wide, 1))
        self.scores = nn.Conv2d(wide, recipe.classes, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.description = (
            f"Network in Network: three blocks of a convolution (5x5, 5x5, 3x3; {wide} channels) and two of 1x1, "
            f"{recipe.nonlinearity.word}, mean over positions"
        )

    def forward(self, x: Tensor) -> Tensor:
        """From images (N, C, H, W) to logits (N, classes)."""
        x = self.dropout1(self.pool1(self.block1(x)))
        x = self.dropout2(self.pool2(self.block2(x)))
        logits: Tensor = self.flatten(self.avgpool(self.scores(self.block3(x))))
        return logits
