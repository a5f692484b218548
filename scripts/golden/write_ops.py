#!/usr/bin/env python3
"""Writes tests/golden/ops/*.safetensors: operators and their gradients as PyTorch computes them in float64.

usage: scripts/golden/write_ops.py [--out FOLDER] [--check]
  --check   compares with the files that are there instead of writing

Inputs are drawn with a fixed seed and rounded to float32 before anything is computed; results are rounded to float32 at
the end. So a reader that widens a file to float64 starts from the exact inputs, and its results may differ from the
stored ones by the last rounding alone: 6e-8 relative per element. Needs torch and numpy, nothing else.

Names: x, weight, bias, out, dout, dx, dweight, dbias; scalars have shape [1]. `dout` is a random upstream gradient.
"""
import argparse
import json
import pathlib
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LARGEST_FILE = 60_000  # bytes


def round32(tensor):
    """The nearest float32 values, as float64."""
    return tensor.to(torch.float32).to(torch.float64)


class Draw:
    """Random float64 tensors whose values are float32 numbers. RandomState's streams never change between versions."""

    def __init__(self, seed=0):
        self.state = np.random.RandomState(seed)

    def normal(self, *shape, scale=1.0):
        return round32(torch.from_numpy(scale * self.state.standard_normal(shape)))

    def uniform(self, *shape, low=0.0, high=1.0):
        return round32(torch.from_numpy(self.state.uniform(low, high, shape)))


def scalar(value):
    return round32(torch.tensor([value], dtype=torch.float64))


def with_gradients(inputs, out_of, draw, names=None):
    """Inputs, out, dout and the gradient d<name> of each input that is named (default: all)."""
    names = list(inputs) if names is None else names
    leaves = {name: value.clone().requires_grad_(name in names) for name, value in inputs.items()}
    out = out_of(**leaves)
    dout = draw.normal(*out.shape)
    out.backward(dout)
    tensors = {**inputs, "out": out.detach(), "dout": dout}
    tensors.update({f"d{name}": leaves[name].grad for name in names})
    return tensors


def rms_norm(rows, channels):
    """out = x / sqrt(mean(x^2) + eps) * weight over the last axis. x (rows, channels), weight (channels), eps [1]."""
    draw, eps = Draw(), scalar(1e-5)
    inputs = {"x": draw.normal(rows, channels, scale=2.0), "weight": draw.uniform(channels, low=0.5, high=1.5)}
    tensors = with_gradients(
        inputs, lambda x, weight: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight, draw)
    return {**tensors, "eps": eps}


def causal_conv1d(batch, seq_len, d_inner, d_conv, reverse):
    """out = silu(depthwise causal convolution), zeros on the left; reverse: on the reversed sequence, reversed back.

    x (batch, seq_len, d_inner), weight (d_inner, 1, d_conv), bias (d_inner).
    """
    draw = Draw()
    inputs = {"x": draw.normal(batch, seq_len, d_inner), "weight": draw.normal(d_inner, 1, d_conv, scale=0.5),
              "bias": draw.normal(d_inner, scale=0.5)}

    def out_of(x, weight, bias):
        sequence = x.flip(1) if reverse else x
        padded = F.pad(sequence.transpose(1, 2), (d_conv - 1, 0))
        out = F.silu(F.conv1d(padded, weight, bias, groups=d_inner)).transpose(1, 2)
        return out.flip(1) if reverse else out

    return with_gradients(inputs, out_of, draw)


def linear(leading, in_features, out_features):
    """out = x weight^T + bias. x (..., in_features), weight (out_features, in_features), bias (out_features)."""
    draw = Draw()
    inputs = {"x": draw.normal(*leading, in_features), "weight": draw.normal(out_features, in_features),
              "bias": draw.normal(out_features)}
    return with_gradients(inputs, F.linear, draw)


def cross_entropy(batch, classes, label_smoothing):
    """Mean over the batch, targets are probabilities. logits, targets (batch, classes); label_smoothing, loss [1]."""
    draw, smoothing = Draw(), scalar(label_smoothing)
    logits = draw.normal(batch, classes, scale=3.0).requires_grad_()
    targets = round32(torch.softmax(draw.normal(batch, classes, scale=2.0), dim=-1))
    loss = F.cross_entropy(logits, targets, label_smoothing=smoothing.item())
    loss.backward()
    return {"logits": logits.detach(), "targets": targets, "label_smoothing": smoothing,
            "loss": loss.detach().reshape(1), "dlogits": logits.grad}


def adamw(count, steps=3):
    """`steps` steps from zero moments. param, grad0.. (count); the hyperparameters are exact in float32, so that a
    test may also write them down: lr 2^-7, beta1 0.875, beta2 1 - 2^-10, eps 2^-27, weight_decay 0.0625."""
    draw = Draw()
    settings = {"lr": 2.0**-7, "beta1": 0.875, "beta2": 1.0 - 2.0**-10, "eps": 2.0**-27, "weight_decay": 0.0625}
    start = draw.normal(count)
    param = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([param], lr=settings["lr"], betas=(settings["beta1"], settings["beta2"]),
                                  eps=settings["eps"], weight_decay=settings["weight_decay"])
    tensors = {"param": start, **{name: scalar(value) for name, value in settings.items()}}
    for step in range(steps):
        # From large to so small that eps matters.
        param.grad = round32(draw.normal(count) * torch.logspace(0, -8, count, dtype=torch.float64))
        tensors[f"grad{step}"] = param.grad.clone()
        optimizer.step()
    state = optimizer.state[param]
    return {**tensors, "param_out": param.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}


def neg_exp(*shape):
    """out = -exp(x)."""
    draw = Draw()
    return with_gradients({"x": draw.normal(*shape, scale=2.0)}, lambda x: -torch.exp(x), draw)


def global_norm(shapes, max_norm):
    """norm [1] of all tensor0.. together; clipped0.. after scaling by min(1, max_norm / (norm + 1e-6))."""
    draw = Draw()
    tensors = {f"tensor{i}": draw.normal(*shape, scale=10.0**i) for i, shape in enumerate(shapes)}
    parameters = []
    for value in tensors.values():
        parameters.append(torch.nn.Parameter(torch.zeros_like(value)))
        parameters[-1].grad = value.clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    clipped = {f"clipped{i}": parameter.grad for i, parameter in enumerate(parameters)}
    return {**tensors, "max_norm": scalar(max_norm), "norm": norm.reshape(1), **clipped}


def all_files():
    for rows, channels in ((5, 7), (3, 384)):
        yield f"rms_norm_{rows}x{channels}", rms_norm(rows, channels)
    for direction in ("forward", "reverse"):
        for shape in ((2, 37, 6), (1, 2, 5)):  # the second is shorter than the filter
            name = "x".join(map(str, shape))
            yield f"causal_conv1d_{direction}_{name}", causal_conv1d(*shape, d_conv=4, reverse=direction == "reverse")
    yield "linear_2x9x5_to_7", linear((2, 9), 5, 7)
    yield "linear_1x1_to_1", linear((1,), 1, 1)
    yield "cross_entropy_6x10", cross_entropy(6, 10, label_smoothing=0.1)
    yield "cross_entropy_1x3", cross_entropy(1, 3, label_smoothing=0.0)
    yield "adamw_37", adamw(37)
    yield "neg_exp_5x16", neg_exp(5, 16)
    yield "global_norm", global_norm(((3, 5), (1,), (2, 3, 7)), max_norm=2.0)


def safetensors_bytes(tensors):
    """The safetensors format: length of the header, JSON header padded to 8 bytes, raw little-endian values."""
    header, data = {}, b""
    for name in sorted(tensors):
        values = tensors[name].detach().to(torch.float32).contiguous().numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape),
                        "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(content):
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + length])
    return {name: np.frombuffer(content[8 + length:][slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
            for name, entry in header.items()}


def difference(content, path):
    """None when the file holds the same numbers up to one float32 rounding, otherwise what differs."""
    if not path.exists():
        return "is missing"
    expected, stored = read_safetensors(content), read_safetensors(path.read_bytes())
    if expected.keys() != stored.keys():
        return f"holds {sorted(stored)}, expected {sorted(expected)}"
    for name, values in expected.items():
        if values.shape != stored[name].shape or not np.allclose(values, stored[name], rtol=2e-7, atol=1e-30):
            return f"differs in {name}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=REPOSITORY / "tests/golden/ops")
    parser.add_argument("--check", action="store_true", help="compare with the files that are there, write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problems = 0
    for name, tensors in all_files():
        content, path = safetensors_bytes(tensors), arguments.out / f"{name}.safetensors"
        if len(content) > LARGEST_FILE:
            sys.exit(f"error: {path.name} would have {len(content)} bytes, more than {LARGEST_FILE}")
        if not all(np.isfinite(values).all() for values in read_safetensors(content).values()):
            sys.exit(f"error: {path.name} would hold values that are not finite")
        if arguments.check:
            found = difference(content, path)
            problems += found is not None
            print(f"{path.name}: {found or 'ok'}")
        else:
            arguments.out.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f"{path.name}: {len(content)} bytes, {' '.join(sorted(tensors))}")
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
