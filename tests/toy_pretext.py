"""A pretext task that trains in a second; also a script, for runs in processes of their own.

``python -m tests.toy_pretext OUT STEPS SAVE_EVERY [--die-at STEP] [--batch B] [--draws]``
"""

import argparse
import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch

from tomoprobe.submissions import architectures
from tomoprobe.submissions.baselines._pretraining import Objective, Preset
from tomoprobe.submissions.baselines._training_loop import train

PRESET = Preset(
    architecture={
        "patch_size": 4,
        "hidden_size": 12,
        "mlp_dim": 12,
        "num_layers": 1,
        "num_heads": 2,
    },
    shape=(8, 8, 8),
    readout=architectures.get("vit").READOUTS[0],
    steps=12,
    batch=4,
    learning_rate=0.01,
    weight_decay=(0.04, 0.4),
    warmup=3,
    clip=1.0,
)


class ToyObjective(Objective):
    """The embedding has to tell the brightness; a teacher follows."""

    def __init__(self, preset):
        super().__init__()
        build = architectures.get("vit").build
        make = {"shape": preset.shape, "channels": 1, "readout": preset.readout}
        self.network = build(**make, **preset.architecture)
        self.teacher = build(**make, **preset.architecture).requires_grad_(False)
        self.head = torch.nn.Linear(self.network.width, 1)
        self.options = preset.options

    def loss(self, batch, progress):
        image, brightness = batch["image"], batch["brightness"]
        if self.options.get("draws"):
            image = image + 0.1 * torch.randn_like(image)
        embedding = self.network.embed(image)
        loss = (self.head(embedding)[:, 0] - brightness).square().mean()
        if self.options.get("nan_from", 1.0) <= progress:
            loss = loss * torch.nan
        return loss, {"embedding_std": embedding.detach().std(0).mean(), "progress": progress}

    def after_step(self, progress):
        del progress
        with torch.no_grad():
            for slow, fast in zip(
                self.teacher.parameters(), self.network.parameters(), strict=True
            ):
                slow.lerp_(fast, 0.1)

    def encoder(self):
        return self.teacher


@dataclass
class ToySource:
    seen: list = field(default_factory=list)

    def sample(self, rng):
        brightness = rng.normal()
        image = (0.1 * rng.normal(size=(1, 8, 8, 8)) + brightness).astype("float32")
        self.seen.append(round(brightness, 9))
        return {
            "image": torch.from_numpy(image),
            "brightness": torch.tensor(brightness, dtype=torch.float32),
        }

    def describe(self):
        return "generated cubes"


class ToyPretext:
    name = "toy"
    architecture = "vit"
    presets = MappingProxyType({"tiny": PRESET, "full": PRESET})

    def objective(self, preset):
        return ToyObjective(preset)

    def source(self, preset, data):
        return ToySource()

    def card(self, preset):
        return {
            "title": 'A "toy"',
            "pretraining": [],
            "intensity": {"scanner": {"type": "ZScore"}, "HU": {"type": "MinMax"}},
            "grid": {"spacing": [1.0, 1.0, 2.0]},
            "note": "One sentence.",
        }


def run(out, *, progress=None, save_steps=4, source=None, resume=True, seed=0, **changes):
    return train(
        ToyPretext(),
        replace(PRESET, **changes),
        source or ToySource(),
        Path(out),
        preset_name="tiny",
        seed=seed,
        save_steps=save_steps,
        save_seconds=1e9,
        progress=progress,
        resume=resume,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--die-at", type=int, default=0)
    parser.add_argument("--file-limit", type=int, default=0)
    parser.add_argument("--draws", action="store_true")
    parser.add_argument("--ranks", action="store_true", help="One file of weights per process.")
    arguments = parser.parse_args()
    if arguments.file_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (arguments.file_limit, arguments.file_limit))

    def die(done, total, record):
        if done == arguments.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    pretext = ToyPretext()
    made = []
    build = pretext.objective
    pretext.objective = lambda preset: made.append(build(preset)) or made[-1]
    train(
        pretext,
        replace(
            PRESET,
            steps=arguments.steps,
            batch=arguments.batch,
            options={"draws": True} if arguments.draws else {},
        ),
        ToySource(),
        Path(arguments.out),
        preset_name="tiny",
        save_steps=4,
        save_seconds=1e9,
        progress=die,
    )
    if arguments.ranks:
        torch.save(made[0].state_dict(), Path(arguments.out) / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
