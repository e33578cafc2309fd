"""The training loop: one process per core with one thread each, gradients summed once a step.

Two processes of one thread are twice as quick here as one process of two threads: the tensors are small, and a
barrier after each of some 600 operations costs more than the operation where other programs use the cores too.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import rows, vocab
from .data import Mix
from .muon import Muon
from .net import Net, Shape

MUON_LR, ADAM_LR = 0.02, 0.002
# Pulls log(sum(exp(logits))) to 0, so the right token's logit is near 0: multiplying it by a repetition penalty of
# 1.1 changes nothing, and lists, counts and repeats survive the sampling that Qwen2.5 recommends.
Z_LOSS = 0.002
SAVE_EVERY = 100


@dataclass(frozen=True)
class Stage:
    """Learning rates go linearly from `lr[0]` to `lr[1]` times the base rate over the stage's steps."""

    n_steps: int
    lr: tuple[float, float]
    lengths: rows.Lengths = field(default_factory=rows.Lengths)
    mix: Mix = field(default_factory=Mix)
    n_tokens: int = 2500  # of one process in one step


# The last stage leans on what takes longest to learn: copying letter by letter, and where a count has to end.
HARD = Mix(weights=(("state", 22), ("ask", 28), ("repeat", 23), ("count", 12), ("block", 4), ("chat", 6), ("else", 5)))
NEWEST = Mix(
    weights=(("state", 24), ("ask", 27), ("repeat", 22), ("count", 15), ("block", 3), ("chat", 5), ("else", 4)),
    correct=0.4,
    known=0.64,
)
FAR = Mix(
    weights=(("state", 25), ("ask", 34), ("repeat", 24), ("count", 8), ("block", 4), ("chat", 4), ("else", 4)),
    correct=0.6,
)
EXACT = Mix(
    weights=(("state", 18), ("ask", 28), ("repeat", 38), ("count", 8), ("block", 3), ("chat", 3), ("else", 2)),
    long_repeat=0.3,
    correct=0.5,
    doubled=True,
)
VERBATIM = Mix(
    weights=(("state", 13), ("ask", 18), ("repeat", 54), ("count", 8), ("block", 2), ("chat", 2), ("else", 3)),
    long_repeat=0.3,
    correct=0.3,
    doubled=True,
)
STAGES: dict[str, Stage] = {
    "short": Stage(n_steps=600, lr=(1.0, 1.0), lengths=rows.Lengths(max_turns=6)),
    "mixed": Stage(n_steps=300, lr=(1.0, 0.75), lengths=rows.Lengths(max_turns=12, long_share=0.02)),
    "long": Stage(n_steps=400, lr=(0.75, 0.3214), lengths=rows.Lengths(max_turns=10, long_share=0.03), mix=HARD),
    "newest": Stage(n_steps=560, lr=(0.45, 0.0), lengths=rows.Lengths(max_turns=10, long_share=0.03), mix=NEWEST),
    "far": Stage(n_steps=450, lr=(0.4, 0.0), lengths=rows.Lengths(max_turns=12, long_share=0.06), mix=FAR),
    "exact": Stage(n_steps=400, lr=(0.5, 0.0), lengths=rows.Lengths(max_turns=10, long_share=0.03), mix=EXACT),
    "verbatim": Stage(n_steps=320, lr=(0.4, 0.0), lengths=rows.Lengths(max_turns=6, long_share=0.01), mix=VERBATIM),
}
N_WARMUP = 40


@dataclass(frozen=True)
class Plan:
    stages: tuple[str, ...]
    seed: int
    n_threads: int
    scratch: Path
    n_steps: int | None = None  # overrides each stage's own
    start: Path | None = None


def loss_of(net: nn.Module, batch: rows.Batch) -> tuple[Tensor, Tensor, float]:
    """(loss to minimise, its cross entropy, share of tokens that greedy decoding gets right)"""
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(batch.ids, batch.positions, batch.at)
    logits = logits.float()
    total = logits.logsumexp(-1)
    entropy = (total - logits.gather(1, batch.targets[:, None])[:, 0]).mean()
    right = (logits.detach().argmax(-1) == batch.targets).float().mean().item()
    return entropy + Z_LOSS * total.square().mean(), entropy.detach(), right


def share_gradients(parameters: list[nn.Parameter]) -> None:
    """Averages over the processes, then clips the norm to 1."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if dist.is_initialized():
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))
    nn.utils.clip_grad_norm_(parameters, 1.0)


def optimizers(net: Net) -> tuple[Muon, torch.optim.AdamW]:
    matrices = [parameter for parameter in net.layers.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in net.parameters() if id(parameter) not in chosen]
    return Muon(matrices, MUON_LR), torch.optim.AdamW(others, ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)


def save(path: Path, net: Net, optims: tuple[torch.optim.Optimizer, ...]) -> None:
    """Beside its place, then renamed: a reader never sees half a checkpoint."""
    part = path.with_suffix(".part")
    torch.save({"net": net.state_dict(), "optims": [optim.state_dict() for optim in optims]}, part)
    part.replace(path)


def run_stage(plan: Plan, name: str, net: Net, optims: tuple[Muon, torch.optim.AdamW], rank: int) -> None:
    stage, tokenizer = STAGES[name], vocab.build()
    rng = random.Random(f"{plan.seed} {name} {rank}")
    source = rows.batches(tokenizer, rng, stage.mix, stage.lengths, stage.n_tokens)
    n_steps = plan.n_steps or stage.n_steps
    bases = (MUON_LR, ADAM_LR)
    began, seen = time.monotonic(), torch.zeros(3)
    for step in range(1, n_steps + 1):
        rate = stage.lr[0] + (stage.lr[1] - stage.lr[0]) * (step - 1) / n_steps
        rate *= min(1.0, step / N_WARMUP) if plan.start is None and name == plan.stages[0] else 1.0
        for optim, base in zip(optims, bases, strict=True):
            optim.param_groups[0]["lr"] = rate * base
        batch = next(source)
        loss, entropy, right = loss_of(net, batch)
        loss.backward()
        share_gradients(list(net.parameters()))
        for optim in optims:
            optim.step()
        net.zero_grad()
        seen += torch.tensor([entropy.item(), right, batch.ids.numel()])
        if rank == 0 and step % 20 == 0:
            pace = (time.monotonic() - began) / step
            print(
                f"{name} {step}/{n_steps} loss {seen[0] / 20:.4f} right {seen[1] / 20:.4f} "
                f"tokens {seen[2] / 20:.0f} {pace:.2f} s/step",
                flush=True,
            )
            seen.zero_()
        if rank == 0 and (step % SAVE_EVERY == 0 or step == n_steps):
            save(plan.scratch / f"{name}.pt", net, optims)


def work(rank: int, plan: Plan) -> None:
    """One process of the training; all start from the same seed and stay equal."""
    torch.set_num_threads(1)
    if plan.n_threads > 1:
        dist.init_process_group("gloo", rank=rank, world_size=plan.n_threads)
    torch.manual_seed(plan.seed)
    net = Net(Shape(n_vocab=vocab.build().get_vocab_size()))
    optims = optimizers(net)
    if plan.start is not None:
        saved = torch.load(plan.start, weights_only=True)
        net.load_state_dict(saved["net"])
        for optim, state in zip(optims, saved["optims"], strict=True):
            optim.load_state_dict(state)
    for name in plan.stages:
        run_stage(plan, name, net, optims, rank)


def train(plan: Plan) -> Path:
    """Trains all stages; returns the last checkpoint."""
    plan.scratch.mkdir(parents=True, exist_ok=True)
    if plan.n_threads == 1:
        work(0, plan)
    else:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29577")
        torch.multiprocessing.spawn(work, (plan,), nprocs=plan.n_threads)
    return plan.scratch / f"{plan.stages[-1]}.pt"
