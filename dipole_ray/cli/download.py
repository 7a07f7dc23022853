"""`dipole data download`: the datasets that OGBench and ExORL publish, from their hosts or from mirrors."""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from dipole_ray.cli.command import CACHE, add_command
from dipole_ray.errors import ConfigError

DOWNLOAD_HELP = """\
Download a dataset of OGBench or ExORL: continued after a break, verified before use, from mirrors if need be.

examples:
  # NAME.npz and NAME-val.npz; the name of a task gives the dataset that the task is learned from
  dipole data download ogbench pointmaze-medium-navigate-v0
  dipole data download ogbench cube-double-play-singletask-task2-v0

  # to where the ogbench package looks
  dipole data download ogbench antmaze-large-navigate-v0 --out ~/.ogbench/data

  # DOMAIN/ALGORITHM.zip, to be unpacked with unzip and imported with 'dipole data import'
  dipole data download exorl walker/rnd --out data/exorl

  # mirrors, tried in this order, then the official host; the same can stand in DIPOLE_OGBENCH_URL or DIPOLE_EXORL_URL
  dipole data download ogbench scene-play-v0 --base-url https://data.example.org/ogbench --base-url http://10.0.0.7:8000

  # the copy that OGBench's authors name for when their host is down (its layout was not tried here)
  dipole data download ogbench scene-play-v0 \\
      --base-url https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main

names of ogbench (each ends in -v0; pixels are not supported):
  pointmaze-{medium,large,giant,teleport}-{navigate,stitch}     humanoidmaze-{medium,large,giant}-{navigate,stitch}
  antmaze-{medium,large,giant,teleport}-{navigate,stitch}       antmaze-{medium,large,teleport}-explore
  antsoccer-{arena,medium}-{navigate,stitch}                    cube-{single,double,triple,quadruple}-{play,noisy}
  scene-{play,noisy}                                            puzzle-{3x3,4x4,4x5,4x6}-{play,noisy}
names of exorl:
  {cartpole,cheetah,jaco,point_mass_maze,quadruped,walker}/{aps,diayn,disagreement,icm,icm_apt,proto,random,rnd,smm}

A file has its final name only after it was verified: against --sha256, the checksum that an earlier download recorded
in FILE.json, or the one that its server publishes (FILE.sha256, SHA256SUMS, or Hugging Face's header). The official
hosts publish none that we know of: then the command says so, reads the whole archive against its CRC-32 sums, and
prints the SHA-256 for you to pin. A broken download stays as FILE.part, and the same command continues it.
"""


def add_download(commands: Any) -> None:
    """Add `download` to the commands of `dipole data`."""
    parser = add_command(commands, "download", run_download, DOWNLOAD_HELP)
    parser.add_argument("source", choices=("ogbench", "exorl"), help="who publishes the dataset")
    parser.add_argument("name", metavar="NAME", help="a dataset, such as cube-single-play-v0 or walker/rnd")
    folder = f"folder for the files (default: {CACHE}/downloads/ogbench or exorl)"
    parser.add_argument("--out", metavar="DIR", type=Path, help=folder)
    mirror = "where a mirror has the files; repeatable"
    parser.add_argument("--base-url", metavar="URL", action="append", default=[], help=mirror)
    checksum = "checksum that a file must have; with FILE= where there are several files; repeatable"
    parser.add_argument("--sha256", metavar="[FILE=]HEX", action="append", default=[], help=checksum)
    silence = "silence after which a server is left (default: 30 s)"
    parser.add_argument("--timeout", metavar="S", type=float, default=30.0, help=silence)
    attempts = "attempts after a failed one, per mirror (default: 4)"
    parser.add_argument("--retries", metavar="N", type=int, default=4, help=attempts)


def run_download(args: argparse.Namespace) -> int:
    """Download the files of a dataset, say what they were verified by and what to do next."""
    from dipole_ray.data.download.catalogue import base_urls, dataset_of, remote_files
    from dipole_ray.data.download.fetch import Patience, download
    from dipole_ray.files.durable import format_bytes

    if not (math.isfinite(args.timeout) and args.timeout > 0 and args.retries >= 0):
        given = f"--timeout {args.timeout:g} --retries {args.retries}"
        raise ConfigError(f"{given}: use a positive timeout and retries of 0 or more")
    dataset = dataset_of(args.source, args.name)
    files, bases = remote_files(args.source, dataset), base_urls(args.source, args.base_url)
    sums = _checksums(args.sha256, [file.name for file in files])
    folder: Path = (args.out or CACHE / "downloads" / args.source).expanduser()
    patience = Patience(timeout_s=args.timeout, retries=args.retries)
    if dataset != args.name:
        _say(f"{args.name} is learned from the dataset {dataset}: {' and '.join(file.name for file in files)}")
    done = []
    for file in files:
        try:
            done.append(download(file, bases, folder, sha256=sums.get(file.name), patience=patience, say=_say))
        except KeyboardInterrupt:
            _say(f"{file.name}: what arrived is kept; the same command continues there")
            raise
        came = "was here already" if done[-1].url is None else f"from {done[-1].url}"
        print(f"{done[-1].path}: {format_bytes(done[-1].size)}, {came}")
        print(f"  sha256 {done[-1].sha256}\n  {done[-1].verified}", flush=True)
    print(_next_steps(args.source, args.name, dataset, done[0].path))
    return 0


def _say(text: str) -> None:
    """Write to the standard error of this moment, which a live progress bar may have replaced."""
    print(text, file=sys.stderr, flush=True)


def _checksums(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return the checksum of each file that was given one."""
    found = {}
    for word in words:
        name, equals, text = word.rpartition("=")
        if not equals and len(names) > 1:
            raise ConfigError(f"--sha256 {word}: there are {len(names)} files; write it as --sha256 {names[0]}={word}")
        if equals and name not in names:
            raise ConfigError(f"--sha256 {word}: no file '{name}' here; the files are {', '.join(names)}")
        if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
            raise ConfigError(f"--sha256 {word}: a SHA-256 has 64 hexadecimal digits, this has {len(text)} characters")
        found[name or names[0]] = text.lower()
    return found


def _next_steps(source: str, name: str, dataset: str, path: Path) -> str:
    from dipole_ray.envs.exorl.tasks import task_ids

    if source == "exorl":
        folder, domain = path.with_suffix(""), dataset.partition("/")[0]
        tasks = [task for task in task_ids() if task.startswith(f"exorl/{domain}-")]
        use = (
            f"dipole data import {quote(str(folder))} --env {tasks[0]} --out DIR"
            if tasks
            else "(no task of it can be run here)"
        )
        return f"next: unzip -q {quote(str(path))} -d {quote(str(folder))}\n      {use}"
    task = name if "-singletask" in name else "-singletask-".join(dataset.rsplit("-", 1))
    file = quote(str(path))
    return (
        f"next: dipole data inspect {file} --env {task}\n"
        f"      dipole train {quote(f'data.path={path}')} env.id={task}\n"
        f"  or, to convert it once: dipole data import {file} --env {task} --out DIR"
    )
