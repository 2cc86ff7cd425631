"""The command `train`, with the options of everything that training can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gossamer.options import (
    Channels,
    Json,
    Layout,
    Mean,
    Metric,
    ModelPath,
    Out,
    Resize,
    Scale,
    Size,
    Std,
    TrainData,
    data_options,
)
from gossamer.terminal import reporting


def train(
    model: ModelPath,
    train_data: TrainData,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="TEACHER",
            help="What to learn from besides labels, or instead: an ONNX model, or its outputs as .npy or .npz; "
            "several with commas and weights (a.onnx,b.onnx:2), or each for one output (digits=a.onnx,clothes=b.onnx); "
            "self for the model as it is.",
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Of hard_labels, soft_labels, features, outputs, attention, relations, similarities, contrast, "
            "correlation, decoupled; each with a weight if you like, as in soft_labels:0.5,attention:2, "
            "and of several outputs soft_labels@digits for one "
            "(docs/distillation.md). By default what suits: soft_labels with a teacher of classes, outputs with "
            "another, hard_labels with labels alone.",
        ),
    ] = "",
    temperature: Annotated[float, typer.Option(help="Of soft_labels, correlation and decoupled.")] = 2.0,
    alpha: Annotated[
        float | None,
        typer.Option(help="The teacher's share beside labels (default 0.9; 1 without labels).", show_default=False),
    ] = None,
    constraint: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="What weights are to be: grid:4, sparse:0.9, sparse:0.9+codebook:16; they are moved there and trained "
            "within it, and without TEACHER the model teaches that it was. A model of integers, zeros or shared values "
            "is trained in its form without this.",
            show_default=False,
        ),
    ] = "",
    head: Annotated[
        int | None,
        typer.Option(min=2, help="Draw the last layer anew, for so many classes.", show_default=False),
    ] = None,
    rates: Annotated[
        str,
        typer.Option(
            metavar="PATTERN:SHARE,...",
            help="Shares of the learning rate by name of weight or layer, 0 freezes: 'layer1*:0,layer2*:0.1'; body is "
            "all but the last layer (body:0), falling:0.8 is 0.8 for each layer on the way up. Later ones win.",
            show_default=False,
        ),
    ] = "",
    activations: Annotated[
        Literal["uint8", "int8", "float"], typer.Option(help="What layers compute in behind a grid.")
    ] = "uint8",
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="In which a ratio of zeros is reached; by default 4.", show_default=False),
    ] = None,
    removal: Annotated[
        Literal["second_order", "gradual", "movement", "rigl"],
        typer.Option(
            help="How zeros come about: at the least error of what layers compute, in rounds; or while the rest is "
            "trained, by size (gradual), by where weights move (movement), or dropped and grown (rigl)."
        ),
    ] = "second_order",
    spread: Annotated[
        Literal["score", "equal"],
        typer.Option(
            help="What a ratio of zeros is of: all layers together, most where weights matter least (score), or "
            "each layer (equal). N:M and blocks are of each."
        ),
    ] = "score",
    penalty: Annotated[
        str,
        typer.Option(
            metavar="A:STRENGTH,...",
            help="What weights cost by themselves: lasso, group_lasso, mixture (values that gather), rate (the bits "
            "that integers take in an archive), as in lasso:0.1 or rate:0.2. They make weights small or alike; what "
            "makes zeros and shared values of them is --constraint.",
            show_default=False,
        ),
    ] = "",
    sections: Annotated[
        int,
        typer.Option(
            min=0,
            help="Train integers in so many sections, front to back, each by the tensors of the float network behind "
            "its blocks, with the epochs for each; for few bits and few samples. 0: all at once.",
        ),
    ] = 0,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Measure the result on these samples; by default on a tenth of the others.",
            show_default=False,
        ),
    ] = None,
    out: Out = Path("out"),
    epochs: Annotated[int, typer.Option(min=1, help="Times that all samples are seen.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Samples that go through at once, in each process.")] = 64,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches that make one step.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Highest learning rate; by default a range test finds it, and integers take 1e-3 of their step.",
            show_default=False,
        ),
    ] = None,
    optimizer: Annotated[Literal["adamw", "sgd"], typer.Option(help="What makes steps of gradients.")] = "adamw",
    schedule: Annotated[Literal["cosine", "constant"], typer.Option(help="How the rate runs.")] = "cosine",
    warm_up: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.05,
    decay: Annotated[float, typer.Option(help="Weight decay.")] = 1e-4,
    clip: Annotated[float, typer.Option(help="Greatest norm of the gradients; 0 does not clip.")] = 1.0,
    average: Annotated[float, typer.Option(help="Moving average of the weights, such as 0.999; 0 for none.")] = 0.0,
    patience: Annotated[int, typer.Option(help="Epochs without gain after which training stops; 0 for never.")] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="What computes.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Processes that share each step.")] = 1,
    precision: Annotated[Literal["float32", "bfloat16"], typer.Option(help="What products are made in.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the order of samples, and dropout.")] = 0,
    metric: Metric = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Figures for TensorBoard.", show_default=False)
    ] = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="Figures for MLflow.", show_default=False)] = None,
    size: Size = None,
    resize: Resize = None,
    mean: Mean = "",
    std: Std = "",
    scale: Scale = None,
    layout: Layout = "nchw",
    channels: Channels = "rgb",
    json: Json = False,
) -> None:
    """Train MODEL on labels, on what a teacher says of samples without labels, or on both.

    A tenth of the samples chooses the epoch that is kept, another tenth (or DATA) measures it. FOLDER then holds
    `model.onnx` and `training.json`. A run that was killed goes on when the same command is given again.

    Exit status: 0 done, 2 bad input or a run that failed.

    Examples:

        gossamer train small.onnx --train-data photos.npz --teacher big.onnx -o out/

        gossamer train small.onnx --train-data photos.npz --teacher big.onnx --loss soft_labels,features

        gossamer train model.onnx --train-data photos.npz --constraint grid:4

        gossamer train clothes.onnx --train-data digits.npz --head 10 --rates body:0.1
    """
    with reporting() as console:
        try:
            from gossamer.training.command import train_model
        except ModuleNotFoundError as error:
            from gossamer.errors import MissingExtraError

            raise MissingExtraError("training needs torch: pip install 'gossamer[train]'") from error
        import msgspec

        from gossamer.training.options import Options
        from gossamer.training.teaching import Distillation
        from gossamer.training.watching import watch_of

        names = tuple(part.strip() for part in loss.split(",") if part.strip())
        summary = train_model(
            model,
            train_data,
            out,
            teacher,
            Distillation(names, temperature, alpha),
            Options(
                epochs=epochs,
                batch=batch,
                optimizer=optimizer,
                rate=rate,
                decay=decay,
                schedule=schedule,
                warm_up=warm_up,
                clip=clip,
                average=average,
                patience=patience,
                seed=seed,
                device=device,
                precision=precision,
                devices=devices,
                accumulate=accumulate,
                rates=rates,
            ),
            data,
            data_options(size, resize, mean, std, scale, layout, channels),
            metric,
            watch_of(console.log_line, console.progress, tensorboard, mlflow),
            constraint,
            activations,
            rounds,
            head,
            removal,
            tuple(part.strip() for part in penalty.split(",") if part.strip()),
            sections,
            spread,
        )
        if json:
            console.give(msgspec.json.encode(summary))
        else:
            console.say(summary.line())
