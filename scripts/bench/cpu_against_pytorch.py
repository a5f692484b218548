#!/usr/bin/env python3
"""Times the 6m network on one 224 x 224 image on the CPU: pixel-mamba beside PyTorch, same weights, same threads.

usage: scripts/bench/cpu_against_pytorch.py [--program FILE] [--threads N] [--rounds N] [--scans compiled,reference] [--modes infer,train]

PyTorch runs the same network twice over: with a scan compiled from sequential_scan.cpp (one walk over time per channel, OpenMP
over channels, -O3 -march=native -ffast-math), and with the reference scan, a Python loop over time around tensor operations.
Before anything is timed, `pixel-mamba verify` compares the logits and every gradient of both programs. Then rounds alternate
between the programs; the table shows medians. Needs Debian's python3-torch and a C++ compiler (PyTorch of pip does as well).
"""
import argparse
import ctypes
import json
import math
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).resolve().parent
SIZE, CLASSES, D_STATE, D_CONV, EXPAND = 224, 1000, 16, 4, 2
TABLE = ("3 HC,6 VC,12 HC,24 VC,48,48 HC,96,96 VC,192,192,192 HA,192,192,192 VA,192,192,192,192,192,192 HA,192,192 VC,384,384")
NAMES = {"HC": "horizontal_cat", "VC": "vertical_cat", "HA": "horizontal_avg", "VA": "vertical_avg"}
LAYERS = [(int(row.split()[0]), NAMES.get(row.split()[-1], "none")) for row in TABLE.split(",")]


# ---------------------------------------------------------------- the two scans: (seq_len, d_inner) each, no gate, no skip
def reference_scan(u, delta, A, B, C):
    decays = torch.exp(delta.unsqueeze(-1) * A)  # (seq_len, d_inner, d_state)
    inputs = (delta * u).unsqueeze(-1) * B.unsqueeze(1)
    state, out = torch.zeros_like(A), []
    for decay, step, c in zip(decays.unbind(0), inputs.unbind(0), C.unbind(0)):
        state = decay * state + step
        out.append(state @ c)
    return torch.stack(out)


def compiled_scan(folder):
    library = pathlib.Path(folder) / "sequential_scan.so"
    subprocess.run([os.environ.get("CXX", "g++"), "-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC",
                    str(HERE / "sequential_scan.cpp"), "-o", str(library)], check=True)
    code = ctypes.CDLL(str(library))

    def call(function, tensors, *sizes):
        function(*[ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors], *map(ctypes.c_int64, sizes))

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, delta, A, B, C):
            u, delta, A, B, C = (t.contiguous() for t in (u, delta, A, B, C))
            keep = any(ctx.needs_input_grad)
            states = torch.empty(u.shape[1], u.shape[0], D_STATE) if keep else None
            y = torch.empty_like(u)
            call(code.scan_forward, (delta, u, A, B, C, y, states), *u.shape)
            if keep:
                ctx.save_for_backward(u, delta, A, B, C, states)
            return y

        @staticmethod
        def backward(ctx, dy):
            u, delta, A, B, C, states = ctx.saved_tensors
            ddelta, du, dA = torch.empty_like(delta), torch.empty_like(u), torch.empty_like(A)
            dB, dC = torch.empty_like(states), torch.empty_like(states)
            call(code.scan_backward, (dy.contiguous(), delta, u, A, B, C, states, ddelta, du, dA, dB, dC), *u.shape)
            return du, ddelta, dA, dB.sum(0), dC.sum(0)

    return Scan.apply


# ---------------------------------------------------------------- the network, for one image of one region
def path_of(h, w):
    """Cells of an (h, w) map in boustrophedon order."""
    cells = torch.arange(h * w).reshape(h, w)
    cells[1::2] = cells[1::2].flip(1)
    return cells.reshape(-1)


def with_cls(cells, cls):
    half = cells.shape[0] // 2
    return torch.cat([cells[:half], cls, cells[half:]])


def expand(tokens, h, w, kind):
    half = h * w // 2
    cls, cells = tokens[half:half + 1], torch.cat([tokens[:half], tokens[half + 1:]])
    grid = torch.empty_like(cells).index_copy(0, path_of(h, w), cells).reshape(h, w, -1)
    axis = 1 if kind.startswith("horizontal") else 0
    size = grid.shape[axis]
    first, before, after = grid.narrow(axis, 0, 1), grid.narrow(axis, 0, size - 1), grid.narrow(axis, 1, size - 1)
    merged = torch.cat([first, (before + after) / 2], axis)
    even, odd = (merged.index_select(axis, torch.arange(start, size, 2)) for start in (0, 1))
    cat = kind.endswith("cat")
    grid = torch.cat([even, odd], -1) if cat else (even + odd) / 2
    h, w = grid.shape[:2]
    return with_cls(grid.reshape(h * w, -1)[path_of(h, w)], torch.cat([cls, cls], 1) if cat else cls), h, w


def rms_norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def direction(p, layer, suffix, x, z, scan):
    name = f"layers.{layer}.mixer."
    weight = p[f"{name}conv1d{suffix}.weight"]
    if suffix:
        x, z = x.flip(0), z.flip(0)
    u = F.silu(F.conv1d(F.pad(x.t().unsqueeze(0), (D_CONV - 1, 0)), weight, p[f"{name}conv1d{suffix}.bias"],
                        groups=weight.shape[0]))[0].t()
    dt_weight = p[f"{name}dt_proj{suffix}.weight"]
    dt, B, C = F.linear(u, p[f"{name}x_proj{suffix}.weight"]).split([dt_weight.shape[1], D_STATE, D_STATE], 1)
    delta = F.softplus(F.linear(dt, dt_weight, p[f"{name}dt_proj{suffix}.bias"]))
    A_log, D = (p[f"{name}{'A_b_log' if suffix else 'A_log'}"], p[f"{name}{'D_b' if suffix else 'D'}"])
    y = (scan(u, delta, -torch.exp(A_log), B, C) + D * u) * F.silu(z)
    return y.flip(0) if suffix else y


def network(p, image, scan):
    h = w = SIZE
    tokens = with_cls(image[0].permute(1, 2, 0).reshape(h * w, 3)[path_of(h, w)], p["cls_token"][0])
    for i, (_, kind) in enumerate(LAYERS):
        x, z = F.linear(rms_norm(tokens, p[f"layers.{i}.norm.weight"]), p[f"layers.{i}.mixer.in_proj.weight"]).chunk(2, 1)
        y = direction(p, i, "", x, z, scan) + direction(p, i, "_b", x, z, scan)
        tokens = tokens + F.linear(y, p[f"layers.{i}.mixer.out_proj.weight"])
        if kind != "none":
            tokens, h, w = expand(tokens, h, w, kind)
    embedding = rms_norm(tokens[h * w // 2], p["norm_f.weight"]).unsqueeze(0)
    return F.linear(embedding, p["head.weight"], p["head.bias"]), embedding


def initial_weights():
    torch.manual_seed(0)
    p = {"cls_token": 0.02 * torch.randn(1, 1, 3)}
    uniform = lambda bound, *shape: bound * (2 * torch.rand(*shape) - 1)
    for i, (channels, _) in enumerate(LAYERS):
        inner, rank, name = EXPAND * channels, math.ceil(channels / 16), f"layers.{i}.mixer."
        p[f"layers.{i}.norm.weight"] = torch.ones(channels)
        p[name + "in_proj.weight"] = uniform(channels**-0.5, 2 * inner, channels)
        p[name + "out_proj.weight"] = uniform(inner**-0.5 / len(LAYERS)**0.5, channels, inner)
        for s in ("", "_b"):
            p[f"{name}conv1d{s}.weight"] = uniform(0.5, inner, 1, D_CONV)
            p[f"{name}conv1d{s}.bias"] = uniform(0.5, inner)
            p[f"{name}x_proj{s}.weight"] = uniform(inner**-0.5, rank + 2 * D_STATE, inner)
            p[f"{name}dt_proj{s}.weight"] = uniform(rank**-0.5, inner, rank)
            dt = torch.exp(torch.rand(inner) * math.log(100) + math.log(1e-3))
            p[f"{name}dt_proj{s}.bias"] = dt + torch.log(-torch.expm1(-dt))
            p[name + ("A_b_log" if s else "A_log")] = torch.log(torch.arange(1.0, D_STATE + 1)).repeat(inner, 1)
            p[name + ("D_b" if s else "D")] = torch.ones(inner)
    last = LAYERS[-1][0]
    return {**p, "norm_f.weight": torch.ones(last), "head.weight": 0.02 * torch.randn(CLASSES, last),
            "head.bias": torch.zeros(CLASSES)}


# ---------------------------------------------------------------- the same numbers?
def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        values = tensor.detach().contiguous().numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def check_equal(folder, program, parameters, image, scan):
    """Lets pixel-mamba compare its logits, loss and gradients with those of PyTorch."""
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    pixels, label = image.clone().requires_grad_(), torch.tensor([1])
    logits, embedding = network(leaves, pixels, scan)
    loss = F.cross_entropy(logits, label)
    loss.backward()
    config = {"architecture": "pixel-mamba", "layers": [{"channels": c, "expansion": kind} for c, kind in LAYERS],
              "d_state": D_STATE, "d_conv": D_CONV, "expand": EXPAND, "region_size": SIZE, "head": "classification",
              "num_classes": CLASSES}
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", parameters)
    write_safetensors(folder / "input.safetensors", {"image": image, "label": label})
    gradients = {f"grad.{name}": value.grad for name, value in {**leaves, "image": pixels}.items()}
    write_safetensors(folder / "expected.safetensors", {"logits": logits, "embedding": embedding, "loss": loss.reshape(1),
                                                       "regions_left": torch.tensor([1]), **gradients})
    done = subprocess.run([program, "verify", str(folder), "--device", "cpu"], capture_output=True, text=True)
    print(done.stdout.replace(f"{folder}: ", ""), end="")
    if done.returncode != 0:
        sys.exit(f"error: the two programs disagree, nothing is timed\n{done.stderr}")


# ---------------------------------------------------------------- timing
def ours_ms(program, mode):
    done = subprocess.run([program, "bench", "images", "--device", "cpu", "--batch", "1", "--mode", mode, "--repeats", "5",
                           "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["ms"]


def torch_ms(step, repeats):
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[1:])


def steps_of(parameters, image, scan):
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    optimiser = torch.optim.AdamW(leaves.values(), lr=1e-5, weight_decay=0.05)

    def infer():
        with torch.no_grad():
            network(leaves, image, scan)

    def train():
        optimiser.zero_grad()
        F.cross_entropy(network(leaves, image, scan)[0], torch.tensor([1]), label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        optimiser.step()

    return {"infer": infer, "train": train}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=str(HERE.parents[1] / "build-cpu/bin/pixel-mamba"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scans", default="compiled,reference", help="which scans PyTorch runs")
    parser.add_argument("--modes", default="infer,train", help="training through the reference scan takes over half a minute")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        scans = {"compiled": compiled_scan(folder), "reference": reference_scan}
        parameters = initial_weights()
        image = torch.from_numpy(np.random.RandomState(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32))
        check_equal(pathlib.Path(folder), arguments.program, parameters, image, scans["compiled"])
        kinds = arguments.scans.split(",")
        steps = {kind: steps_of(parameters, image, scans[kind]) for kind in kinds}
        times = {}
        for _ in range(arguments.rounds):
            for mode in arguments.modes.split(","):
                times.setdefault(("pixel-mamba", mode), []).append(ours_ms(arguments.program, mode))
                for kind in kinds:
                    measured = torch_ms(steps[kind][mode], 3 if kind == "compiled" else 1)
                    times.setdefault((f"PyTorch {torch.__version__}, {kind} scan", mode), []).append(measured)
    print(f"6m, one {SIZE} x {SIZE} image, {arguments.threads} threads, median of {arguments.rounds} rounds (lowest)")
    for (name, mode), values in times.items():
        ratio = statistics.median(values) / statistics.median(times["pixel-mamba", mode])
        print(f"{mode:6} {name:36} {statistics.median(values):10.1f} ms ({min(values):.1f})  {ratio:6.2f} x")


if __name__ == "__main__":
    main()
