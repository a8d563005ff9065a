"""What a training is: one frozen dataclass, which is also the command line of ``batchnorm train`` and its TOML file.

The docstring below each field is its help text. Nothing here imports torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from batchnorm.lab.training import checks

Optimizer = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]
ScheduleName = Literal["constant", "step", "cosine", "linear", "exponential", "inverse-time"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]
Statistics = Literal["running", "population"]
Penalized = Literal["weights", "all"]
ProbeName = Literal["activations", "gradients", "running", "input_shift", "shift", "landscape"]

#: What may differ when a run is resumed: none of it changes a step that was or will be taken, but for its length.
MAY_CHANGE = (
    *("epochs", "steps", "out", "data_dir", "threads", "tensorboard", "tune_allocator"),
    *("log_every", "evaluate_every", "checkpoint_every", "probe_every", "probes", "train_subset"),
    *("evaluate_early", "units"),
)


@dataclass(frozen=True)
class TrainConfig:
    """Train one network, and record what happens in it.

    By default: a small convolutional network with batch normalization on scikit-learn's digits, in seconds. A setting
    that is None takes the value that suits the model and the data, and the run directory says which. The guide,
    docs/guides/training.md, has a section for each group of settings.
    """

    data: str = "digits"
    """Data to train on: digits (comes with scikit-learn), mnist, fashion_mnist, cifar10, a 2-D set, a folder of images
    or an .npz or .mat file."""

    data_dir: Path | None = None
    """Folder of the data files, in torchvision's layout. None: the environment variable BATCHNORM_DATA, else the user's
    cache."""

    validation: float = 0.0
    """Share of the training examples that is held out as the validation part, from 0 to below 1."""

    image_size: int | None = None
    """Side of the images of an image folder. None: as the data set says."""

    split_seed: int = 0
    """Fixes which examples are held out; apart from the seed, so that runs of several seeds are judged alike."""

    flip: bool | None = None
    """Mirror training images left and right, half of the time. None: on CIFAR."""

    crop: int | None = None
    """Pixels by which training images are padded before a random part of the former size is cut out; 0 for none. None:
    4 on CIFAR, else 0."""

    padding: Literal["zero", "reflect"] = "zero"
    """What crop pads with."""

    resized_crop: float = 0.0
    """Least share of the area of a random rectangle that is cut out of a training image and resized; for image folders.
    0: none."""

    cutout: int = 0
    """Side of a square in training images that is set to zero. 0: none."""

    mixup: float = 0.0
    """Mix each training example with another by a share from Beta(mixup, mixup). 0: not done."""

    model: str = "convnet"
    """Network: a name from `batchnorm models`, or package.module:factory for one of your own."""

    norm: str = "batch"
    """Normalization: none, batch (this package's), torch (PyTorch's batch normalization), group, layer or instance."""

    norm_eps: float = 1e-5
    """Added to the variance by the normalization."""

    norm_momentum: float = 0.1
    """Weight of the new batch in the running statistics."""

    norm_groups: int = 32
    """Groups of group normalization."""

    activation: str | None = None
    """Nonlinearity, such as relu, sigmoid or tanh. None: the network's own."""

    initializer: str | None = None
    """How the weights are drawn: default (torch's), normal, orthogonal, or xavier_ or kaiming_ with uniform or normal.
    None: the network's own."""

    weight_std: float | None = None
    """Standard deviation of the initial weights; means the initializer normal."""

    width: float = 1.0
    """Factor of the numbers of channels, where the network has it."""

    hidden: tuple[int, ...] | None = None
    """Units of the hidden dense layers of mlp and the convnets."""

    channels: tuple[int, ...] | None = None
    """Channels of the stages of the convnets."""

    convolutions: int | None = None
    """Convolutions in each stage of the convnets."""

    dropout: float = 0.0
    """Probability that dropout zeroes a value, where the network has dropout layers."""

    stochastic_depth: float = 0.0
    """Probability that the last residual branch is dropped for an example; earlier ones linearly less."""

    zero_init_residual: bool = False
    """Start the last weight in each residual branch at 0, that of its normalization or else convolution, so that a
    block starts as the identity."""

    seed: int = 0
    """Fixes the initial weights, the order of the data, their augmentation and every mask of dropout."""

    optimizer: Optimizer | None = None
    """Rule of the updates: sgd, momentum and nesterov (sgd with a velocity), adagrad, rmsprop, adam, or adamw (its L2
    decoupled from the gradient). None: the recipe of the model."""

    lr: float | None = None
    """Learning rate at its highest. None: the recipe of the model and the optimizer."""

    momentum: float = 0.9
    """Weight of the old velocity in momentum and nesterov."""

    beta1: float = 0.9
    """Weight of the old mean of the gradients in adam and adamw."""

    beta2: float = 0.999
    """Weight of the old mean of the squared gradients in adam and adamw."""

    square_decay: float = 0.99
    """Weight of the old mean of the squared gradients in rmsprop."""

    optimizer_eps: float = 1e-8
    """Added to the root of the squared gradients by adagrad, rmsprop, adam and adamw."""

    schedule: ScheduleName | None = None
    """Learning rate over the steps after the warm-up. None: the recipe of the model."""

    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where the schedule step drops, as shares of the steps."""

    decay: float | None = None
    """step: what a drop multiplies by (None: 0.1). exponential: what an epoch multiplies by (None: 0.95). inverse-time:
    k of lr / (1 + k * epoch) (None: 1)."""

    final_lr: float = 0.0
    """Where the schedules cosine and linear end."""

    warmup_steps: int = 0
    """Steps over which the learning rate first rises in equal parts to its highest."""

    batch_size: int | None = None
    """Examples in one step, over all processes. None: the recipe of the model."""

    accumulate: int = 1
    """Pieces in which a process takes its part of the batch, one after the other, to save memory. The gradient is
    that of the mean over the whole batch; batch normalization sees one piece at a time."""

    epochs: int | None = None
    """Passes over the training data. None: the recipe of the model, unless steps is given."""

    steps: int | None = None
    """Updates of the parameters, instead of epochs."""

    l2: float | None = None
    """L2 penalty (weight decay): half of this times the sum of the squared weights. None: the recipe of the model."""

    l1: float = 0.0
    """L1 penalty: this times the sum of the absolute weights."""

    penalized: Penalized = "weights"
    """What the penalties act on: weights of dense layers and convolutions; or all parameters, biases and those of
    normalization layers too."""

    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""

    clip_norm: float | None = None
    """Largest norm of the gradient of the whole network: a longer one is scaled down."""

    clip_value: float | None = None
    """Largest absolute value in the gradient: what is beyond is cut."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute. auto: a GPU if there is one."""

    precision: Precision = "32"
    """32: float32 throughout. bf16-mixed and 16-mixed: autocast, with loss scaling for 16-mixed."""

    threads: int | None = None
    """Threads that torch computes with on a CPU. None: 1 for mlp and digits, which gain nothing from more, else as many
    as torch takes."""

    convert: bool = False
    """Exchange torch's batch normalization for this package's before training, with the addition and the activation
    that follow in its pass."""

    channels_last: bool = False
    """Keep images and weights of convolutions with their channels last in memory."""

    compile: bool = False
    """Compile the network with torch.compile."""

    tune_allocator: bool = True
    """On a CPU, keep large blocks in the process (batchnorm.tune_allocator). It is for the whole process."""

    statistics: Statistics = "running"
    """What batch normalization uses in evaluations: its running statistics, or population statistics (Algorithm 2),
    measured on a copy of the network; training keeps its own."""

    population_batches: int = 50
    """Training batches that population statistics are measured on, at most."""

    evaluate_every: int | None = None
    """Steps between evaluations; one comes at the end anyway. None: an epoch, at most 500 steps."""

    evaluate_early: bool = False
    """Evaluate after 1, 2, 5, 10, 20 and 50 steps too, where a network changes fastest."""

    units: bool = False
    """Record, at each evaluation on the test data, the 15th, 50th and 85th percentile of the input to every unit of the
    last hidden layer, and the saturated share of each hidden layer. For mlp, convnet and similar networks."""

    train_subset: int = 2000
    """Training examples on which the network is evaluated too, always the same and without augmentation: what
    separates their accuracy from that of the test part is not the mode. 0: none."""

    log_every: int = 10
    """Steps between records of the training loss."""

    probes: tuple[ProbeName, ...] = ("activations", "gradients", "running")
    """What is measured inside the network. activations, gradients and running are cheap; input_shift and shift
    (internal covariate shift, of distributions and of gradients) and landscape cost further passes. With no value:
    nothing."""

    probe_every: int | None = None
    """Steps between measurements of the probes. None: a hundredth of the run, at least 25."""

    checkpoint_every: int | None = None
    """Steps between checkpoints. None: at each evaluation."""

    target_accuracy: float | None = None
    """Stop when the accuracy on the validation part, or on the test part where there is none, has reached this."""

    tensorboard: bool = False
    """Write the records for TensorBoard too, into the run directory."""

    out: Path | None = None
    """Run directory, new or empty. None: runs/train-DATA-MODEL-NORM-TIME."""

    def __post_init__(self) -> None:
        """Check every field; nothing behind this border checks again."""
        checks.check(self)
