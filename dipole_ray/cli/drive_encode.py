"""`dipole drive encode` and `train-encoder`: what the driving policy's encoder makes of scenes, once."""

import argparse
from pathlib import Path
from typing import Any

from dipole_ray.cli.command import add_command
from dipole_ray.errors import counted

_ENCODE = """\
Encode the scenes of a folder, once, to context tokens for the policy's head; what was interrupted goes on.

examples:
  dipole drive encode berlin-0 --policy tiny
  dipole drive encode berlin-0 --policy small --weights small-encoder
  dipole drive encode navtest --policy large --weights Florence-2-large --sensors openscene/sensor_blobs --device cuda

tiny is Florence-2's encoder with random weights, for tests; small reads a scene from above and is trained by dipole
drive train-encoder; large is the encoder of Florence-2-large, of which the folder holds model.safetensors, by its own
names or those of transformers, and tokenizer.json. Nothing is fetched. Tokens are float16, 20 kB a scene for tiny,
16 kB for small and 1 MB for large, in a file for each file of scenes; files are encoded side by side on all cores, or a
Ray cluster. A folder that holds tokens of another encoder or of other scenes is refused.
"""
_TRAIN = """\
Train the small encoder, convolutions over a scene from above, to tell the drivers' plans.

examples:
  dipole drive train-encoder berlin-0 koenigs_wusterhausen-0 --out small-encoder
"""


def add_encoder_commands(commands: Any) -> None:
    """Add the two commands to those of `dipole drive`."""
    encode = add_command(commands, "encode", run_encode, _ENCODE)
    encode.add_argument("scenes", metavar="FOLDER", type=Path, help="folder of scenes")
    encode.add_argument("--policy", choices=("tiny", "small", "large"), default="small", help="(default: small)")
    encode.add_argument("--weights", metavar="FOLDER", type=Path, help="of the encoder; tiny has none")
    encode.add_argument("--sensors", metavar="FOLDER", type=Path, help="pictures that the scenes' log names")
    encode.add_argument("--out", metavar="FOLDER", type=Path, help="folder to write (default: FOLDER/contexts-POLICY)")
    encode.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda takes a GPU a task")
    train = add_command(commands, "train-encoder", run_train_encoder, _TRAIN)
    train.add_argument("scenes", metavar="FOLDER", type=Path, nargs="+", help="folders of scenes, at least 64 in all")
    train.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="folder for encoder.safetensors")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights (default: 0)")


def run_encode(arguments: argparse.Namespace) -> int:
    """Encode the scenes of a folder."""
    from dipole_ray.driving.container import SceneFolder
    from dipole_ray.driving.contexts import default_folder, encode_scenes

    out = arguments.out or default_folder(arguments.scenes, arguments.policy)
    how = arguments.policy, arguments.weights, arguments.sensors, arguments.device
    contexts = encode_scenes(SceneFolder(arguments.scenes), out, *how)
    tokens, numbers = contexts.shape
    print(f"{out}: {counted(len(contexts), 'scene')}, {tokens} tokens of {numbers}; encoder {contexts.encoder[:12]}")
    return 0


def run_train_encoder(arguments: argparse.Namespace) -> int:
    """Train the small encoder."""
    from dipole_ray.driving.container import SceneFolder
    from dipole_ray.driving.encoders import train_small

    train_small([SceneFolder(one) for one in arguments.scenes], arguments.out, arguments.seed)
    print(f"{arguments.out}: now 'dipole drive encode FOLDER --policy small --weights {arguments.out}'")
    return 0
