"""Train the two small networks of this folder and write `reader.onnx`, `ledger.onnx` and their data.

    PYTHONPATH=. python tests/hard/make_nets.py tests/hard [reader] [ledger]

Needs torch; about five minutes a network on one core. The graphs are written by hand, with the recurrent layers as
the operators GRU and LSTM, as exporters write them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from tests.hard.tasks import BIN, BINS, FEATURES, HEIGHT, STEPS, WIDTH, draw_ledgers, draw_lines, exact_lines
from torch import Tensor, nn
from torch.nn import functional

SEED = 5
SYMBOLS = 11  # ten digits and the blank
READER_STEPS, LEDGER_STEPS = 3000, 4000
READER_SAMPLES, LEDGER_SAMPLES = 330, 900
LOUD, LOUDNESS = 3, 20.0  # channels of the second convolution that are much larger than the others, and by how much


class Reader(nn.Module):
    """Convolutions without normalization, a squeeze-and-excite gate, hard-swish, a two-way GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, 1, 1)
        self.conv2 = nn.Conv2d(24, 48, 3, 2, 1)
        self.squeeze = nn.Conv2d(48, 8, 1)
        self.excite = nn.Conv2d(8, 48, 1)
        self.conv3 = nn.Conv2d(48, 48, 3, 1, 1)
        self.conv4 = nn.Conv2d(48, 48, (6, 1))
        self.gru = nn.GRU(48, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv2(functional.hardswish(self.conv1(x))))
        gate = self.excite(functional.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = functional.hardswish(self.conv3(x * functional.hardsigmoid(gate)))
        x = functional.hardswish(self.conv4(x)).squeeze(2).transpose(1, 2)
        scores: Tensor = self.head(self.gru(x)[0])
        return scores

    @torch.no_grad()
    def make_loud(self) -> None:
        """A few channels behind a ReLU much larger, and the weights that read them smaller; same function.

        Nets trained long without normalization end up so by themselves.
        """
        self.conv2.weight[:LOUD] *= LOUDNESS
        self.conv2.bias[:LOUD] *= LOUDNESS  # type: ignore[index]  # there is one
        self.squeeze.weight[:, :LOUD] /= LOUDNESS
        self.conv3.weight[:, :LOUD] /= LOUDNESS


class Ledger(nn.Module):
    """Two narrow LSTM layers; the last state tells the bin of the total. `total` helps training only."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(FEATURES, 24)
        self.lstm1 = nn.LSTM(24, 32, batch_first=True)
        self.lstm2 = nn.LSTM(32, 32, batch_first=True)
        self.head = nn.Linear(32, BINS)
        self.total = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lstm2(self.lstm1(torch.relu(self.entry(x)))[0])[0][:, -1]
        return torch.cat([self.head(h), self.total(h)], 1)


Loss = Callable[[nn.Module, np.random.Generator], Tensor]


def train(net: nn.Module, steps: int, rate: float, loss_of: Loss) -> None:
    """Adam with one learning-rate cycle, on fresh samples at every step."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    rng, begin = np.random.default_rng(SEED), time.monotonic()
    for step in range(1, steps + 1):
        loss = loss_of(net, rng)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step}: loss {loss.item():.4f}, {time.monotonic() - begin:.0f} s", flush=True)


def reader_loss(net: nn.Module, rng: np.random.Generator) -> Tensor:
    pictures, digits = draw_lines(rng, 64)
    scores_TNC = functional.log_softmax(net(torch.from_numpy(pictures)), 2).transpose(0, 1)
    lengths = torch.from_numpy((digits >= 0).sum(1))
    steps = torch.full((len(digits),), len(scores_TNC))
    wanted = torch.from_numpy(np.maximum(digits, 0))
    return functional.ctc_loss(scores_TNC, wanted, steps, lengths, blank=SYMBOLS - 1, zero_infinity=True)


def ledger_loss(net: nn.Module, rng: np.random.Generator) -> Tensor:
    x, label = draw_ledgers(rng, 128)
    out = net(torch.from_numpy(x))
    total = torch.from_numpy((x[:, :, 0] * x[:, :, 1]).sum(1) / BIN)
    return functional.cross_entropy(out[:, :BINS], torch.from_numpy(label)) + functional.mse_loss(out[:, BINS], total)


# --- the files


READER = f"""<ir_version: 10, opset_import: ["" : 21]>
reader (float[N,1,{HEIGHT},{WIDTH}] picture) => (float[N,T,{SYMBOLS}] scores)
    <int64[1] two = {{2}}, int64[3] rows = {{0, 0, 48}}> {{
    a1 = Conv<pads=[1,1,1,1]>(picture, conv1_weight, conv1_bias)
    a2 = HardSwish(a1)
    a3 = Conv<strides=[2,2], pads=[1,1,1,1]>(a2, conv2_weight, conv2_bias)
    a4 = Relu(a3)
    g1 = GlobalAveragePool(a4)
    g2 = Conv(g1, squeeze_weight, squeeze_bias)
    g3 = Relu(g2)
    g4 = Conv(g3, excite_weight, excite_bias)
    g5 = HardSigmoid<alpha=0.16666667>(g4)
    a5 = Mul(a4, g5)
    a6 = Conv<pads=[1,1,1,1]>(a5, conv3_weight, conv3_bias)
    a7 = HardSwish(a6)
    a8 = Conv(a7, conv4_weight, conv4_bias)
    a9 = HardSwish(a8)
    s1 = Squeeze(a9, two)
    s2 = Transpose<perm=[2,0,1]>(s1)
    s3, last = GRU<hidden_size=24, direction="bidirectional", linear_before_reset=1>(s2, gru_W, gru_R, gru_B)
    s4 = Transpose<perm=[2,0,1,3]>(s3)
    s5 = Reshape(s4, rows)
    s6 = MatMul(s5, head_weight)
    scores = Add(s6, head_bias)
}}"""
LEDGER = f"""<ir_version: 10, opset_import: ["" : 21]>
ledger (float[N,{STEPS},{FEATURES}] steps) => (float[N,{BINS}] scores)
    <int64[1] zero = {{0}}> {{
    e1 = MatMul(steps, entry_weight)
    e2 = Add(e1, entry_bias)
    e3 = Relu(e2)
    e4 = Transpose<perm=[1,0,2]>(e3)
    h1, h2, h3 = LSTM<hidden_size=32>(e4, lstm1_W, lstm1_R, lstm1_B)
    h4 = Squeeze(h1, first)
    h5, h6, h7 = LSTM<hidden_size=32>(h4, lstm2_W, lstm2_R, lstm2_B)
    h8 = Squeeze(h6, zero)
    scores = Gemm<transB=1>(h8, head_weight, head_bias)
}}""".replace("<int64[1] zero = {0}>", "<int64[1] zero = {0}, int64[1] first = {1}>")
ORDER = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}  # torch's gates in ONNX's order: z r h, and i o f c


def weights_of(net: nn.Module, recurrent: Mapping[str, str], transposed: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Torch's parameters under the names of the graphs above."""
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in net.state_dict().items():
        owner = name.split(".")[0]
        if owner not in recurrent and owner != "total":
            array = tensor.numpy()
            arrays[name.replace(".", "_")] = array.T if owner in transposed and array.ndim == 2 else array
    for owner, kind in recurrent.items():
        arrays |= _recurrent_weights(getattr(net, owner), owner, ORDER[kind])
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}


def _recurrent_weights(layer: nn.RNNBase, name: str, order: tuple[int, ...]) -> dict[str, np.ndarray]:
    def gates(part: str, suffix: str) -> np.ndarray:
        blocks = np.split(getattr(layer, f"{part}_l0{suffix}").detach().numpy(), len(order))
        return np.concatenate([blocks[gate] for gate in order])

    directions = ("", "_reverse") if layer.bidirectional else ("",)
    biases = [np.concatenate([gates("bias_ih", way), gates("bias_hh", way)]) for way in directions]
    return {
        f"{name}_W": np.stack([gates("weight_ih", way) for way in directions]),
        f"{name}_R": np.stack([gates("weight_hh", way) for way in directions]),
        f"{name}_B": np.stack(biases),
    }


def write(text: str, weights: Mapping[str, np.ndarray], path: Path) -> None:
    """The graph with its weights, its nodes named after their outputs."""
    proto = onnx.parser.parse_model(text)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items() if name in used
    )
    for node in proto.graph.node:
        owner = next((name.rsplit("_", 1)[0] for name in node.input if name in weights), "")
        node.name = owner if owner and node.op_type != "Add" else f"{node.op_type.lower()}_{node.output[0]}"
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(onnx.shape_inference.infer_shapes(proto).SerializeToString())


def run(path: Path, net: nn.Module, x: np.ndarray) -> np.ndarray:
    """The file's scores, after checking them against torch's."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).numpy()[..., : scores.shape[-1]]
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=2e-3)
    return scores


def make_reader(folder: Path) -> None:
    torch.manual_seed(SEED)
    net = Reader()
    train(net, READER_STEPS, 4e-3, reader_loss)
    net.eval().make_loud()
    write(READER, weights_of(net, {"gru": "gru"}, ("head",)), folder / "reader.onnx")
    pictures, digits = draw_lines(np.random.default_rng(SEED + 1), READER_SAMPLES)
    scores = run(folder / "reader.onnx", net, pictures)
    print(f"reader: {exact_lines({'scores': scores}, digits).mean():.4f} of the lines read without a fault")
    np.savez_compressed(folder / "reader.npz", picture=pictures, labels=digits)


def make_ledger(folder: Path) -> None:
    torch.manual_seed(SEED)
    net = Ledger()
    train(net, LEDGER_STEPS, 5e-3, ledger_loss)
    write(LEDGER, weights_of(net.eval(), {"lstm1": "lstm", "lstm2": "lstm"}, ("entry",)), folder / "ledger.onnx")
    x, labels = draw_ledgers(np.random.default_rng(SEED + 1), LEDGER_SAMPLES)
    scores = run(folder / "ledger.onnx", net, x)
    print(f"ledger: {(scores.argmax(1) == labels).mean():.4f} of the bins")
    np.savez_compressed(folder / "ledger.npz", steps=x, labels=labels)


def main() -> None:
    """Train and write the networks named, or both."""
    torch.set_num_threads(1)
    folder, wanted = Path(sys.argv[1]), sys.argv[2:] or ["reader", "ledger"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        {"reader": make_reader, "ledger": make_ledger}[name](folder)


if __name__ == "__main__":
    main()
