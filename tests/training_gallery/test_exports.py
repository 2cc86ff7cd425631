"""What torch's two exporters write of many kinds of networks is lowered to the function it came from, unbroken."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'gossamer[torch]'")

import gossamer  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402

nn, functional = torch.nn, torch.nn.functional
CLOSE = 1e-5  # of the largest output


class Made(nn.Module):
    """A function of layers and tensors as a module."""

    def __init__(self, function: Callable[..., Any], *layers: Any) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Any) -> Any:
        return self.function(*self.layers, x)


def unet(down: Any, norm: Any, inner: Any, up: Any, out: Any, x: Any) -> Any:
    small = functional.silu(norm(inner(functional.max_pool2d(down(x), 2))))
    return out(torch.cat([up(small), x], 1))


def windows(qkv: Any, x: Any) -> Any:
    parts = x.reshape(x.shape[0], 2, 4, 2, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, x.shape[-1])
    return qkv(parts).reshape(x.shape[0], 2, 2, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(x.shape[0], 8, 8, -1)


def rotated(x: Any) -> Any:
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
    return torch.cat([x[..., ::2] * torch.cos(angle) - x[..., 1::2] * torch.sin(angle), x[..., 1::2]], -1)


def causal(table: Any, x: Any) -> Any:
    y = table(x)[:, None]
    return functional.scaled_dot_product_attention(y, y, y, is_causal=True)


def networks() -> dict[str, tuple[Any, Any]]:
    """Modules and example inputs."""
    torch.manual_seed(0)
    image, steps = torch.randn(2, 3, 8, 8), torch.randn(2, 6, 8)
    encoder_layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return {
        "encoder": (nn.TransformerEncoder(encoder_layer, 2), torch.randn(2, 5, 16)),
        "attention": (
            Made(lambda m, x: m(x, x, x, need_weights=False)[0], nn.MultiheadAttention(8, 4, batch_first=True)),
            steps,
        ),
        "unet": (
            Made(
                unet,
                nn.Conv2d(3, 8, 3, padding=1),
                nn.GroupNorm(2, 8),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.Conv2d(11, 3, 1),
            ),
            image,
        ),
        "decoder": (
            nn.Sequential(
                nn.ConvTranspose2d(3, 8, 4, 2, 1),
                nn.InstanceNorm2d(8, affine=True),
                nn.LeakyReLU(0.2),
                nn.PixelShuffle(2),
            ),
            image,
        ),
        "lstm": (Made(lambda m, x: m(x)[0][:, -1], nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)), steps),
        "gru": (Made(lambda m, x: m(x)[0], nn.GRU(8, 16, batch_first=True)), steps),
        "mirrored": (Made(lambda x: functional.pad(x, (1, 2, 3, 0), mode="reflect")), image),
        "rolled": (Made(lambda x: torch.roll(x, (1, 2), (2, 3)).flip(1)), image),
        "masked": (Made(lambda x: x.masked_fill(x > 0.5, -1e9).cumsum(1).topk(2, -1)[0]), steps),
        "sorted": (Made(lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x)), steps),
        "pooled": (Made(lambda x: functional.adaptive_avg_pool2d(x, 2).flatten(1)), image),
        "sampled": (
            Made(lambda x: functional.grid_sample(x, torch.tanh(x[:, :2].permute(0, 2, 3, 1)), align_corners=False)),
            image,
        ),
        "windows": (Made(windows, nn.Linear(3, 6)), image.permute(0, 2, 3, 1).contiguous()),
        "causal": (Made(causal, nn.Embedding(20, 8)), torch.randint(0, 20, (2, 7))),
        "normalized": (
            nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1, bias=False),
                nn.BatchNorm2d(8),
                nn.Hardswish(),
                nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            ),
            image,
        ),
        "rotated": (Made(rotated), steps),
        "scaled": (Made(lambda x: x / (x.std((1, 2), keepdim=True) + 1e-5) + x.norm(dim=-1, keepdim=True)), steps),
    }


def by_dynamo(module: Any, x: Any) -> Model:
    return gossamer.load_torch(module, (x,), keep_batchnorm=True)


def by_script(module: Any, x: Any) -> Model:
    file = io.BytesIO()
    torch.onnx.export(
        module, (x,), file, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes={"x": {0: "batch"}}
    )
    return gossamer.load(onnx.load_from_string(file.getvalue()))


@pytest.mark.filterwarnings("ignore")  # the exporters warn about themselves and each other
@pytest.mark.parametrize("export", [by_dynamo, by_script])
@pytest.mark.parametrize("name", networks())
def test_exports_are_lowered_to_what_they_came_from(name: str, export: Callable[[Any, Any], Model]) -> None:
    module, x = networks()[name]
    module.eval()
    logging.disable(logging.ERROR)
    try:
        model = export(module, x)
    finally:
        logging.disable(logging.NOTSET)
    lowered, expected = lower(model), module(x)
    atol = CLOSE * float(expected.abs().max())
    torch.testing.assert_close(lowered(x), expected, rtol=0, atol=atol)
    if not any("batch size is fixed" in note for note in model.notes):
        more = torch.cat([x, x[:1]])
        torch.testing.assert_close(lowered(more), module(more), rtol=0, atol=atol)
    torch._dynamo.reset()
    compiled = torch.compile(lowered, backend="eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=atol)
