"""Do the reference encoders compute what the upstream networks compute?

    python tests/goldens.py FILE.json ...

A golden file holds numbers that an upstream network gave with weights and an input made by a
recipe (no trained weights). Here the architecture that the file's ``net`` names is filled by the
same recipe, loaded through the same door as a published checkpoint, and compared. Printed is the
largest error of each recorded tensor in units of the tolerance. The exit status is 1 where one is
above the tolerance, and 2 where a file cannot be compared at all.

``layout.json`` beside a golden file, where there is one, gives the published keys, the values of
constant buffers, and the keys of the rest of the published network.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tomoprobe.benchmark.errors import ManifestError, TomoprobeError
from tomoprobe.submissions.load import LoadedEncoder, load

TOLERANCE = 1e-3
"""Of |reference| and, added to it, of the recorded standard deviation."""

ROUNDED = (2e-3, 1.5e-2)
"""Where q and k are rounded to bfloat16: rms and largest error, of the standard deviation."""


class Unusable(Exception):
    """The file and this program do not agree on the weights or the input; no net was compared."""


# --- from a golden case to our networks: one pair of functions per net ----------------------------


@dataclass(frozen=True)
class Net:
    """How one net of the goldens is spelt here."""

    arguments: Callable[[Mapping[str, Any], Mapping[str, Any], Sequence[int]], dict[str, Any]]
    """(the file's config, the case's build, shape of the input) -> arguments of `load`."""
    outputs: Callable[[LoadedEncoder, torch.Tensor], dict[str, torch.Tensor]]
    """(encoder, input) -> the recorded tensors by name, from the forward path that users run."""


def coralbay_arguments(
    config: Mapping[str, Any], build: Mapping[str, Any], shape: Sequence[int]
) -> dict[str, Any]:
    return {
        "shape": list(shape[2:]),
        "channels": shape[1],
        "feature_size": config["feature_size"],
        "depths": config["depths"],
        "num_heads": config["num_heads"],
        "window_size": config["window_size"],
        "use_v2": config["use_v2"],
        "merging": build["merging"],
    }


def coralbay_outputs(encoder: LoadedEncoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    with watched(encoder, "swinViT") as seen:
        maps = encoder.maps(x)
    names = ("encoder1", "encoder2", "encoder3", "encoder4", "swin_stage3", "encoder10")
    found = {f"map{i}_{name}": m for i, (name, m) in enumerate(zip(names, maps, strict=True))}
    found |= {f"diag_swin_hidden{i}": stage for i, stage in enumerate(seen["swinViT"])}
    found["embedding_multiscale_1152"] = read_out(encoder, "concat", x)
    found["embedding_head_768"] = read_out(encoder, "head", x)
    return found


def cspr_arguments(
    config: Mapping[str, Any], build: Mapping[str, Any], shape: Sequence[int]
) -> dict[str, Any]:
    return {
        "shape": list(shape[2:]),
        "channels": shape[1],
        "layers": {10: [1, 1, 1, 1], 18: [2, 2, 2, 2], 34: [3, 4, 6, 3]}[config["depth"]],
        "base_channels": config["base_channels"],
        "depth_stride": build["depth_stride"],
    }


def cspr_outputs(encoder: LoadedEncoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    names = ("layer1", "layer2", "layer3", "layer4")
    # maps() pools the depth to the stride of the plane; recorded is what the stages gave.
    with watched(encoder, *names) as seen:
        last = read_out(encoder, "last", x)
    found = {name: seen[name] for name in names}
    return found | {"gap_layer4_512": last, "gap_concat_960": read_out(encoder, "concat", x)}


def anatomix_arguments(
    config: Mapping[str, Any], build: Mapping[str, Any], shape: Sequence[int]
) -> dict[str, Any]:
    return {
        "shape": list(shape[2:]),
        "channels": config["input_nc"],
        "width": config["ngf"],
        "downs": config["num_downs"],
        "output_channels": config["output_nc"],
    }


def anatomix_outputs(encoder: LoadedEncoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    modules = {f"module{n}_conv": f"model.{n}" for n in (27, 31, 38, 45, 52)}
    modules |= {f"module{n}_relu": f"model.{n}" for n in (8, 15, 22, 29, 36, 43, 50, 57, 64)}
    with watched(encoder, *modules.values()) as seen:
        fine, *coarse = encoder.maps(x)
    found = {name: seen[module] for name, module in modules.items()}
    found |= {f"module{n}_relu": m for n, m in zip((57, 50, 43, 36), coarse, strict=True)}
    found["output_16_module65"] = fine
    return found | {f"vector_496_{name}": read_out(encoder, name, x) for name in ("relu", "conv")}


def vismae_arguments(
    config: Mapping[str, Any], build: Mapping[str, Any], shape: Sequence[int]
) -> dict[str, Any]:
    return {
        "shape": [*shape[2:], 1],
        "channels": shape[1],
        "patch": config["patch_size"],
        "embed_dim": config["embed_dim"],
        "depths": config["depths"],
        "num_heads": config["num_heads"],
        "window": config["window_size"],
    }


def vismae_outputs(encoder: LoadedEncoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    volume = x[..., None]  # of one slice
    modules = {"patch_embed": "patch_embed"}
    modules |= {f"stage{i}_merged": f"layers.{i - 1}.downsample" for i in (1, 2, 3)}
    with watched(encoder, *modules.values()) as seen:
        pooled = read_out(encoder, "pooled", volume)
    found = {name: seen[module].permute(0, 3, 1, 2) for name, module in modules.items()}
    found |= {f"stage{i}_blocks": m[..., 0] for i, m in enumerate(encoder.maps(volume), 1)}
    return found | {
        "pooled_768": pooled,
        "pooled_ln_768": read_out(encoder, "pooled_ln", volume),
    }


def braindino_arguments(
    config: Mapping[str, Any], build: Mapping[str, Any], shape: Sequence[int]
) -> dict[str, Any]:
    return {
        "shape": [*shape[2:], 1],
        "channels": shape[1],
        "patch": config["patch_size"],
        "dim": config["embed_dim"],
        "depth": config["depth"],
        "heads": config["num_heads"],
        "storage_tokens": config["n_storage_tokens"],
        "qkv_bias": config["qkv_bias"],
        "rope": build["rope"],
    }


def braindino_outputs(encoder: LoadedEncoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    module: Any = encoder.module
    volume = x[..., None]  # of one slice
    blocks = (2, 5, 8, 11)
    with watched(encoder, "norm", *(f"blocks.{n}" for n in blocks)) as seen:
        found = {"cls_768": read_out(encoder, "cls", volume)}
    tokens = seen["norm"]
    storage = module.storage_tokens.shape[1]
    found["storage_tokens"] = tokens[:, 1 : 1 + storage]
    found["patch_tokens_norm"] = tokens[:, 1 + storage :]
    (joined,) = encoder.maps(volume)
    for n, patches in zip(blocks, joined[..., 0].chunk(len(blocks), dim=1), strict=True):
        raw = seen[f"blocks.{n}"]
        found[f"block{n}_patch_norm"] = patches
        found[f"block{n}_patch_raw"] = raw[:, 1 + storage :].mT.reshape(patches.shape)
        found[f"block{n}_cls_norm"] = module.norm(raw)[:, 0]
    return found


NETS: dict[str, Net] = {
    "anatomix": Net(anatomix_arguments, anatomix_outputs),
    "braindino": Net(braindino_arguments, braindino_outputs),
    "coralbay": Net(coralbay_arguments, coralbay_outputs),
    "cspr": Net(cspr_arguments, cspr_outputs),
    "vismae": Net(vismae_arguments, vismae_outputs),
}


@contextmanager
def watched(encoder: LoadedEncoder, *names: str) -> Iterator[dict[str, Any]]:
    """What the named modules of the network return in this block, by name; the last call's."""
    assert encoder.module is not None
    seen: dict[str, Any] = {}
    parts = dict(encoder.module.named_modules())
    hooks = [
        parts[name].register_forward_hook(
            lambda _module, _args, output, name=name: seen.__setitem__(name, output)
        )
        for name in names
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def read_out(encoder: LoadedEncoder, readout: str, x: torch.Tensor) -> torch.Tensor:
    """The embedding with another readout: that of a network with the same weights."""
    module: Any = encoder.module
    before, module.readout = module.readout, readout
    try:
        return encoder.embed(x)
    finally:
        module.readout = before


# --- the recipe, version 1 ------------------------------------------------------------------------


def recipe(key: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """The float32 values of one tensor, from its bare key."""
    word = int.from_bytes(sha256(key.encode()).digest()[:8], "little")
    z = np.random.Generator(np.random.PCG64(word ^ seed)).standard_normal(tuple(shape))
    small = len(shape) <= 1 or shape[0] == 1
    scale = 0.1 if small else float(np.sqrt(2 / np.prod(shape[1:])))
    if key.endswith("running_var"):
        z = 1 + np.abs(scale * z)
    elif len(shape) == 1 and key.endswith((".weight", ".gamma")):  # norms, layer scale
        z = 1 + scale * z
    else:
        z = scale * z
    return np.asarray(z, np.float32)


def recipe_input(shape: Sequence[int], seed: int) -> np.ndarray:
    z = np.random.Generator(np.random.PCG64(seed + 1)).standard_normal(tuple(shape))
    return z.astype(np.float32)


def filled(
    golden: Mapping[str, Any],
    layout: Mapping[str, Any] | None,
    built: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The state dict by the recipe, under the published keys.

    Args:
        golden: the file.
        layout: beside it; None for the keys of our own network.
        built: state dict of our network as constructed: the recipe leaves what is not float32.

    Raises:
        Unusable: a value or the hash of all values is not the recorded one.
    """
    recorded = golden["fill_check"]
    if layout is None:
        keys = [
            (k, list(v.shape), "float32" if k in recorded else "other") for k, v in built.items()
        ]
    else:
        keys = [tuple(entry) for entry in layout["keys"]]
    unknown = set(recorded) - {key for key, _, _ in keys}
    if unknown:
        raise Unusable(f"fill_check holds keys that the network has not: {sorted(unknown)}")
    constants = (layout or {}).get("constant_buffers") or []
    state: dict[str, torch.Tensor] = {}
    digest = sha256()
    for key, shape, dtype in sorted(keys, key=lambda entry: entry[0].encode()):
        if dtype != "float32":
            state[key] = constant(key, shape, dtype, constants, built)
            continue
        value = recipe(key, shape, golden["seed"])
        if key not in recorded or np.float32(recorded[key]) != value.flat[0]:
            raise Unusable(f"{key}: first value {value.flat[0]}, recorded {recorded.get(key)}")
        digest.update(key.encode() + value.astype("<f4").tobytes())
        state[key] = torch.from_numpy(value)
    for case in golden["cases"]:
        if case["weights_sha256"] != digest.hexdigest():
            raise Unusable(
                f"weights_sha256 {digest.hexdigest()}, recorded {case['weights_sha256']}"
            )
    # The rest of the published network: the architecture has to declare that it does not run it.
    for key, shape, *_ in (layout or {}).get("other_keys_in_the_published_file", []):
        state[key] = torch.zeros(shape)
    return state


def constant(
    key: str,
    shape: Sequence[int],
    dtype: str,
    constants: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    built: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """A buffer that the recipe leaves as constructed: from the layout, or else our own."""
    if isinstance(constants, Mapping) and key in constants:
        values = constants[key]["values"]
        return torch.tensor(values, dtype=getattr(torch, dtype)).reshape(tuple(shape))
    if key not in built:
        return torch.zeros(tuple(shape), dtype=getattr(torch, dtype))
    value = built[key]
    for entry in constants if isinstance(constants, list) else []:
        if key.endswith(entry["keys"].split()[-1]):
            found = sha256(value.numpy().astype("<i8").tobytes()).hexdigest()
            if found != entry["sha256_int64_le"]:
                raise Unusable(f"{key}: sha256 {found}, recorded {entry['sha256_int64_le']}")
    return value


# --- comparing ------------------------------------------------------------------------------------


def error(found: torch.Tensor, recorded: Mapping[str, Any], rounded: bool) -> float:
    """Largest error of one tensor in units of the tolerance; infinite for another shape."""
    if list(found.shape) != recorded["shape"]:
        return float("inf")
    flat = found.detach().cpu().numpy().ravel()
    wide = flat.astype(np.float64)
    values = np.concatenate([flat[:16], flat[recorded["index16"]]]).astype(np.float64)
    expected = np.concatenate([recorded["first16"], recorded["value16"]])
    ours = np.array([wide.mean(), wide.std(), *values])
    theirs = np.array([recorded["mean"], recorded["std"], *expected])
    std = recorded["std"]
    if rounded:
        rms, largest = ROUNDED
        off = np.abs(ours - theirs) / std
        return float(max(np.sqrt(np.mean(off[2:] ** 2)) / rms, off.max() / largest))
    return float(np.max(np.abs(ours - theirs) / (TOLERANCE * np.abs(theirs) + TOLERANCE * std)))


def errors(
    encoder: LoadedEncoder, golden: Mapping[str, Any], case: Mapping[str, Any]
) -> dict[str, float]:
    """Largest error of each recorded tensor, in units of the tolerance; infinite if not offered.

    Raises:
        Unusable: the input is not the recorded one.
    """
    x = recipe_input(case["input"]["shape"], golden["seed"])
    found = sha256(x.astype("<f4").tobytes()).hexdigest()
    if found != case["input"]["sha256"]:
        raise Unusable(f"input.sha256 {found}, recorded {case['input']['sha256']}")
    with torch.no_grad():
        ours = NETS[golden["net"]].outputs(encoder, torch.from_numpy(x))
    rounded = case["build"].get("rope") == "bf16"
    return {
        name: error(ours[name], recorded, rounded) if name in ours else float("inf")
        for name, recorded in case["outputs"].items()
    }


@dataclass(frozen=True)
class Golden:
    """A golden file, with our network's weights filled by its recipe in a safetensors file."""

    data: Mapping[str, Any]
    weights: Path

    def case(self, name: str) -> Mapping[str, Any]:
        return next(case for case in self.data["cases"] if case["name"] == name)

    def encoder(self, case: Mapping[str, Any], **changes: Any) -> LoadedEncoder:
        """Ours for a case, loaded as a published checkpoint is."""
        return load(
            self.data["net"], arguments=arguments(self.data, case) | changes, weights=self.weights
        )

    def errors(
        self, case: Mapping[str, Any], encoder: LoadedEncoder | None = None
    ) -> dict[str, float]:
        return errors(encoder or self.encoder(case), self.data, case)


def arguments(golden: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    spelt = NETS[golden["net"]].arguments
    return spelt(golden["config"], case["build"], case["input"]["shape"])


def opened(path: Path, folder: Path) -> Golden:
    """Read a golden file and write our filled weights into a folder.

    Raises:
        Unusable: an unknown net, or weights that are not the recorded ones.
    """
    data = json.loads(path.read_text())
    if data["net"] not in NETS:
        raise Unusable(f"the net '{data['net']}' is unknown; known are {', '.join(NETS)}")
    beside = path.parent / "layout.json"
    layout = json.loads(beside.read_text()) if beside.is_file() else None
    if layout is not None and layout["net"] != data["net"]:
        layout = None
    first = min(data["cases"], key=lambda case: case["optional"])  # no other may be declined
    module = load(data["net"], arguments=arguments(data, first) | {"seed": 0}).module
    assert module is not None
    weights = folder / f"{data['net']}-{data['seed']}.safetensors"
    save_file(filled(data, layout, module.state_dict()), weights)
    return Golden(data, weights)


def report(path: Path) -> bool:
    """Compare one file and print; whether all that has to be is within the tolerance."""
    good = True
    with tempfile.TemporaryDirectory() as folder:
        golden = opened(path, Path(folder))
        for case in golden.data["cases"]:
            title = f"{golden.data['net']} seed {golden.data['seed']} {case['name']}"
            try:
                encoder = golden.encoder(case)
            except ManifestError as declined:
                print(f"{title}: declined: {declined}")  # noqa: T201
                good &= case["optional"]
                continue
            start = time.perf_counter()
            found = golden.errors(case, encoder)
            for name, units in found.items():
                print(f"{title:<44} {name:<28} {units:9.4f}")  # noqa: T201
            worst = max(found, key=lambda name: np.nan_to_num(found[name], nan=np.inf))
            within = all(units <= 1 for units in found.values())
            print(  # noqa: T201
                f"{title:<44} {'within' if within else 'ABOVE'} the tolerance: largest "
                f"{found[worst]:.4f} ({worst}), {time.perf_counter() - start:.1f} s"
            )
            good &= within
    return good


def main(paths: Sequence[Path]) -> int:
    torch.set_num_threads(1)  # as recorded
    status = 0
    for path in paths:
        try:
            status = max(status, 0 if report(path) else 1)
        except (Unusable, TomoprobeError, OSError, json.JSONDecodeError) as refused:
            print(f"{path}: {refused}")  # noqa: T201
            status = 2
    return status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    sys.exit(main(parser.parse_args().files))
