"""`dipole doctor`: what this machine has and lacks, one finding a line, each that is not fine with its remedy.

Whatever may hang or crash (Ray, GL, a tracking server) is tried in a process of its own, with a time limit.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from dipole_ray.cli.command import CACHE, add_command
from dipole_ray.cores import usable_cores
from dipole_ray.errors import ConfigError, first_line

LOW_DISK_GIB, MIN_DISK_GIB = 5.0, 0.5
REASONS = {
    "mujoco": "the physics of OGBench's ant and manipulation tasks changed at 3.5, and 4.0 breaks dm_control",
    "dm_control": "later ones need a mujoco that changes the physics",
    "gymnasium": "RLlib 2.60 is built for it",
}

# What `_probe` runs; each sets `answer`.
RAY_PROBE = """
import os, ray, ray.rllib
from dipole_ray.cores import usable_cores
from dipole_ray.errors import DipoleError
from dipole_ray.cluster import cluster_address, note_file, noted_address, start_ray
os.environ["RAY_ADDRESS"] = sys.argv[1]
try:
    address, noted = cluster_address(), [noted_address(), str(note_file())]
    context = start_ray(include_dashboard=False, log_to_driver=False, logging_level="error")  # as a run does
    assert ray.get(ray.remote(lambda: 41 + 1).remote(), timeout=60) == 42
    resources = ray.cluster_resources()
    answer = {"nodes": len(ray.nodes()), "cpus": resources.get("CPU", 0), "gpus": resources.get("GPU", 0),
              "address": address, "dashboard": context.dashboard_url or "",
              "stale": noted if noted[0] and not (address or sys.argv[1]) else None}
except DipoleError as error:
    answer = {"error": str(error)}
"""
STRANGER_PROBE = """
from dipole_ray.rllib.core_privates import admits_strangers
answer = admits_strangers(sys.argv[1])
"""
GL_PROBE = """
import mujoco
scene = "<mujoco><worldbody><light pos='0 0 3'/><geom size='.5'/></worldbody></mujoco>"
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 48, 64) as renderer:
    renderer.update_scene(data)
    answer = int(renderer.render().max())
"""
MLFLOW_PROBE = """
from dipole_ray.tracking.mlflow_server import connect, experiment_of, reason_of, remedy_of
from dipole_ray.tracking.tracker import TrackingConfig
try:
    client = connect(sys.argv[1])
    experiment_of(client, sys.argv[1], TrackingConfig().experiment)
    answer = {"experiments": len(client.search_experiments(max_results=100))}
except Exception as error:
    answer = {"error": reason_of(error), "remedy": remedy_of(error)}
"""
SUMO_PROBE = """
import subprocess
from dipole_ray.driving.sumo.cities import CITIES, sumo_home
from dipole_ray.errors import DipoleError
try:
    home = sumo_home()
    said = subprocess.run([home / "bin" / "sumo", "--version"], capture_output=True, text=True, check=True).stdout
    maps = [one.name for one in CITIES.values() if (home / one.network).is_file()]
    answer = {"version": said.split()[3], "maps": maps, "wanted": len(CITIES)}
except DipoleError:
    answer = {}
"""
SCENES_PROBE = """
from pathlib import Path
from dipole_ray.driving.container import SceneFolder, is_complete
from dipole_ray.errors import DipoleError
answer = {"scenes": 0, "folders": 0, "begun": 0, "damaged": ""}
for path in sorted(Path(sys.argv[1]).glob("*/scenes.json")):
    try:
        if is_complete(path.parent):
            answer["scenes"] += len(SceneFolder(path.parent))
            answer["folders"] += 1
        else:
            answer["begun"] += 1
    except DipoleError as error:
        answer["damaged"] = answer["damaged"] or str(error)
"""
ENVIRONMENT_PROBE = """
from dipole_ray.envs.make import make_env
env = make_env(sys.argv[1])
env.reset(seed=0)
env.step(env.action_space.sample())
answer = int(env.observation_space.shape[0])
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str  # what was looked at
    status: Literal["ok", "warn", "fail"]  # warn: a run is slower, or can do without; fail: runs cannot work
    message: str  # what was found
    remedy: str = ""  # what to do about it; empty only where the status is ok


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the parsers of `dipole`."""
    summary = "check Python, torch, GPU, MuJoCo, GL, Ray, MLflow, what driving needs and disk"
    text = "Check what a run needs. Ends with status 1 if something fails; a warning is no failure."
    parser = add_command(subparsers, "doctor", run_doctor, text, help=summary)
    parser.add_argument("--address", help="Ray cluster to try (default: RAY_ADDRESS, or a small local one)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of datasets (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON list")


def run_doctor(args: argparse.Namespace) -> int:
    """Print the findings as they are made, and return 1 if any is a failure, else 0."""
    findings = []
    for finding in examine(args.runs, args.cache, args.address):
        findings.append(finding)
        if not args.json:
            print(f"{finding.status:<5} {finding.name:<24} {finding.message}", flush=True)
            if finding.remedy:
                print(f"{'':<5} {'':<24} -> {finding.remedy}", flush=True)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        counts = {status: sum(item.status == status for item in findings) for status in ("ok", "warn", "fail")}
        print(", ".join(f"{number} {status}" for status, number in counts.items()))
    return 1 if any(finding.status == "fail" for finding in findings) else 0


def examine(runs: Path, cache: Path, address: str | None = None) -> Iterator[Finding]:
    """Yield the findings as they are made; the whole takes half a minute, most of it Ray's."""
    yield check_python()
    yield from check_packages()
    yield from check_torch()
    yield check_cores()
    yield check_environment("Environment, MuJoCo", "pointmaze-medium-navigate-singletask-task1-v0")
    yield check_environment("Environment, dm_control", "dm_control/cartpole-swingup")
    yield check_rendering()
    yield check_ray(address or os.environ.get("RAY_ADDRESS") or None)  # None: a small local one, started there
    yield check_mlflow(runs)
    yield from check_driving(CACHE / "recorded")
    yield check_folder("Run folder", runs, "choose another with folder=PATH")
    yield check_folder("Dataset cache", cache, "choose another with data.cache=PATH")


def check_python() -> Finding:
    """Look at the interpreter."""
    found = f"{sys.version.split()[0]} ({sys.executable})"
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding("Python", "ok", found)
    remedy = "make a virtual environment with Python 3.11 or 3.12, which Ray 2.60 and the simulators are tested with"
    return Finding("Python", "fail", found, remedy)


def check_packages() -> Iterator[Finding]:
    """Compare the installed packages with the bounds that dipole_ray declares."""
    from packaging.requirements import Requirement

    try:
        declared = requires("dipole-ray") or []
    except PackageNotFoundError:
        remedy = "install it, for example with 'pip install -e .' in the source folder"
        yield Finding("Packages", "fail", "dipole_ray itself is not installed", remedy)
        return
    fitting = []
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, found = requirement.name, _installed(requirement.name)
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            fitting.append(f"{name} {found}")
            continue
        reason = f" ({REASONS[name]})" if name in REASONS else ""
        message = f"{found or 'not installed'}, needed is {requirement.specifier}{reason}"
        yield Finding(f"Package {name}", "fail", message, f"pip install '{requirement}'")
    yield Finding("Packages", "ok", ", ".join(fitting))


def check_torch() -> Iterator[Finding]:
    """Look at torch, its threads and its GPU."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "fail", f"cannot be imported ({first_line(error)})", "pip install 'torch>=2.6,<3'")
        return
    threads, usable = torch.get_num_threads(), usable_cores()
    if threads > usable:  # torch sees no quota
        message = f"{torch.__version__}, {threads} threads on {usable} usable cores in programs of your own"
        yield Finding(
            "torch", "warn", message, f"set OMP_NUM_THREADS={usable}; the commands set their threads themselves"
        )
    else:
        yield Finding("torch", "ok", f"{torch.__version__}, {threads} threads")
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield Finding("GPU", "ok", ", ".join(names))
    elif shutil.which("nvidia-smi"):
        build = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
        message = f"the machine has an NVIDIA driver, but {build} does not use it"
        remedy = "install the torch build for the driver's CUDA version (pytorch.org, 'Start locally')"
        yield Finding("GPU", "warn", message, remedy)
    else:
        yield Finding("GPU", "ok", "none on this machine; a learner here computes on the CPU")


def check_cores() -> Finding:
    """Compare the cores this process may use with the threads it is told to use."""
    usable, all_cores = usable_cores(), os.cpu_count() or 1
    found = f"{usable} of {all_cores} usable" if usable < all_cores else f"{usable}"
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > usable:
        message = f"{found}, but OMP_NUM_THREADS={told}: threads that wait for a core slow updates many times"
        remedy = f"unset OMP_NUM_THREADS, or set it to {usable} at most"
        return Finding("CPU cores", "warn", message, remedy)
    if usable < 2:
        message = f"{found}: a remote learner and remote workers would share one core"
        return Finding("CPU cores", "warn", message, "train in one process: rollout.num_workers=0 learner.remote=false")
    advice = f"with K rollout workers leave learner.num_threads at null (cores - K) or give at most {usable} - K"
    return Finding("CPU cores", "ok", f"{found}; {advice}")


def check_environment(name: str, env_id: str) -> Finding:
    """Make an environment and step it once."""
    answer, trouble = _probe(ENVIRONMENT_PROBE, env_id, timeout_s=120)
    if answer is not None:
        return Finding(name, "ok", f"{env_id} steps, {answer} observations")
    remedy = "pip install --force-reinstall 'mujoco>=3.1.6,<3.5' 'dm_control<=1.0.36' 'ogbench>=1.2,<1.3'"
    return Finding(name, "fail", f"{env_id}: {trouble}", remedy)


def check_rendering() -> Finding:
    """Render one picture off screen with each backend, which videos and observations that are images need."""
    from dipole_ray.envs.gl import BACKENDS, DEBIAN_PACKAGES, OSMESA_PACKAGES

    chosen = os.environ.get("MUJOCO_GL", "")
    found: dict[str, str] = {}  # what is wrong with each, nothing where it renders
    for backend in BACKENDS if chosen in ("", "disable") else (chosen,):
        own = {"PYOPENGL_PLATFORM": backend} if backend in BACKENDS else {}
        answer, trouble = _probe(GL_PROBE, timeout_s=60, MUJOCO_GL=backend, **own)
        found[backend] = "" if answer else trouble or "the picture is black"
    working = [backend for backend, trouble in found.items() if not trouble]
    failures = [f"MUJOCO_GL={backend} does not render ({trouble})" for backend, trouble in found.items() if trouble]
    if working:
        renders = [f"MUJOCO_GL={backend} renders off screen" for backend in working]
        return Finding("Rendering (GL)", "ok", "; ".join([*renders, *failures]))
    message = f"{'; '.join(failures)}; videos will be missing, and tasks that are seen as images (visual-*) cannot run"
    remedy = f"on Debian or Ubuntu: apt-get install {DEBIAN_PACKAGES} for EGL, or {OSMESA_PACKAGES} for OSMesa; "
    return Finding("Rendering (GL)", "warn", message, f"{remedy}then unset MUJOCO_GL")


def check_ray(address: str | None) -> Finding:
    """Join or start Ray as a run does, run one task there, and import RLlib."""
    answer, trouble = _probe(RAY_PROBE, address or "", timeout_s=180)
    if answer is None:
        where = f"cluster {address}" if address else "local Ray"
        remedy = "see that no other program takes all memory and cores, and try again"
        return Finding("Ray", "fail", f"{where}: {trouble}", remedy)
    if "error" in answer:
        message, _, remedy = answer["error"].rpartition(": ")
        return Finding("Ray", "fail", message, remedy)
    address = answer["address"]
    where = f"cluster {address}" if address else "local Ray"
    size = f"{answer['nodes']} nodes, {answer['cpus']:g} CPUs, {answer['gpus']:g} GPUs"
    found = f"{_installed('ray')}, {where} answers ({size}); RLlib imports"
    if answer["stale"]:
        noted, file = answer["stale"]
        message = f"{found}; 'ray start' noted a cluster at {noted}, which does not answer: 'dipole' passes it over, "
        message += "but ray.init() and Ray Tune in a program of yours would wait for it for many minutes"
        return Finding("Ray", "warn", message, f"remove {file}, or call dipole_ray.start_ray() first")
    return _check_protection(found, address, answer["dashboard"]) if address else Finding("Ray", "ok", found)


def _check_protection(found: str, address: str, dashboard: str) -> Finding:
    """Try the cluster as a stranger would, without its token, and look where its dashboard listens."""
    answer, trouble = _probe(STRANGER_PROBE, address, timeout_s=60, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
    if answer is None:
        message = f"{found}; whether it asks for a token could not be seen ({trouble})"
        return Finding("Ray", "warn", message, "try again on a node of the cluster")
    if answer:
        remedy = "start every node with RAY_AUTH_MODE=token: whoever reaches an open cluster can run code on it"
        return Finding("Ray", "warn", f"{found}; it asks nobody for a token", remedy)
    host = dashboard.removeprefix("http://").rsplit(":", 1)[0]
    if host in ("", "127.0.0.1", "localhost"):
        return Finding("Ray", "ok", f"{found}; it asks for a token")
    message = f"{found}; it asks for a token, but its dashboard listens beyond localhost ({dashboard})"
    ways = "'ray dashboard' or 'ssh -L 8265:localhost:8265'"
    return Finding("Ray", "warn", message, f"start the head with --dashboard-host=127.0.0.1 and come by {ways}")


def check_mlflow(runs: Path) -> Finding:
    """Ask MLflow for its experiments; a database that does not exist yet is not made."""
    from dipole_ray.tracking.mlflow_server import redacted, sqlite_file
    from dipole_ray.tracking.tracker import TrackingConfig

    try:
        uri = TrackingConfig().resolve_uri(runs)
    except ConfigError as error:
        found, _, remedy = str(error).partition(": ")
        return Finding("MLflow", "fail", found, remedy)
    shown, database = redacted(uri), sqlite_file(uri)
    if database is not None and not database.exists():
        return Finding("MLflow", "ok", f"{_installed('mlflow')}, {shown} is made by the first run")
    answer, trouble = _probe(MLFLOW_PROBE, uri, timeout_s=60)
    if answer is not None and "error" not in answer:
        return Finding("MLflow", "ok", f"{_installed('mlflow')}, {shown} answers, {answer['experiments']} experiments")
    trouble, remedy = (answer["error"], answer["remedy"]) if answer is not None else (trouble, "")
    message = f"{shown}: {redacted(trouble)}; training works, its metrics stay in metrics.jsonl"
    remedy = remedy or "start the server, correct MLFLOW_TRACKING_URI, or unset it to use SQLite beside the runs"
    return Finding("MLflow", "warn", message, remedy)


def check_driving(recorded: Path) -> Iterator[Finding]:
    """Look at the extra `driving`, at SUMO and at the scenes that runs have recorded; who has no shapely wants none."""
    from packaging.requirements import Requirement

    install = "pip install 'dipole-ray[driving]', in a checkout pip install -e '.[driving]'"
    if _installed("shapely") is None:
        yield Finding("Driving", "ok", f"not installed, and needed by env.id=drive and dipole drive alone: {install}")
        return
    declared = [Requirement(one) for one in requires("dipole-ray") or [] if "driving" in one]
    misfits = [
        f"{one.name} {_installed(one.name) or 'not installed'}, needed is {one.specifier}"
        for one in declared
        if one.name != "eclipse-sumo" and not one.specifier.contains(_installed(one.name) or "0", prereleases=True)
    ]
    fitting = ", ".join(f"{name} {_installed(name)}" for name in ("shapely", "scipy", "pillow", "transformers"))
    yield Finding("Driving", "warn", "; ".join(misfits), install) if misfits else Finding("Driving", "ok", fitting)
    yield _check_sumo(install)
    folder = recorded.expanduser()
    answer, trouble = _probe(SCENES_PROBE, str(folder), timeout_s=60)
    found = f"{answer['scenes']} recorded in {answer['folders']} folders of {recorded}" if answer else trouble
    if answer and not answer["damaged"]:
        begun = f", {answer['begun']} begun, which go on when a run needs them" if answer["begun"] else ""
        yield Finding("Driving, scenes", "ok", found + begun)
        return
    why = f"{found}; {answer['damaged']}" if answer else found
    yield Finding("Driving, scenes", "warn", why, f"remove that folder of {recorded}; a run records it again")


def _check_sumo(install: str) -> Finding:
    """Ask SUMO for its version, and look for the maps."""
    name = "Driving, SUMO"
    answer, trouble = _probe(SUMO_PROBE, timeout_s=60)
    if answer == {}:
        return Finding(name, "ok", f"not installed: scenes are imported, and none recorded; to record, {install}")
    if answer is None:
        message = f"does not run ({trouble}): no scenes can be recorded"
        return Finding(name, "warn", message, "pip install --force-reinstall 'eclipse-sumo>=1.28,<2'")
    found = f"{answer['version']}, maps {', '.join(answer['maps'])}"
    if len(answer["maps"]) == answer["wanted"]:
        return Finding(name, "ok", found)
    message = f"{found}, {answer['wanted'] - len(answer['maps'])} missing: another version than these maps are of"
    return Finding(name, "warn", message, "pip install 'eclipse-sumo>=1.28,<2'")


def check_folder(name: str, folder: Path, alternative: str) -> Finding:
    """Look whether a folder, or the one it would be made in, can be written and has space."""
    there = folder.expanduser().resolve()
    there = next(place for place in (there, *there.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"dipole")
            file.flush()
        free_gib = shutil.disk_usage(there).free / 2**30
    except OSError as error:
        message = f"{there} cannot be written ({error.strerror})"
        return Finding(name, "fail", message, f"make it writable, or {alternative}")
    message = f"{folder}: writable, {free_gib:.1f} GiB free"
    if free_gib >= LOW_DISK_GIB:
        return Finding(name, "ok", message)
    remedy = f"free at least 5 GiB, or {alternative}"
    return Finding(name, "fail" if free_gib < MIN_DISK_GIB else "warn", message, remedy)


def _probe(code: str, *arguments: str, timeout_s: float, **environment: str) -> tuple[Any, str]:
    """Run `code` in a fresh process; return the `answer` that it sets, or None and what went wrong."""
    code = f"import json, sys\n{code}\nprint(json.dumps(answer))"
    command, env = [sys.executable, "-c", code, *arguments], {**os.environ, **environment}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=env)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {timeout_s:.0f} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1]), ""
    errors = done.stderr.strip().splitlines()
    return None, first_line(errors[-1] if errors else f"ended with status {done.returncode}")


def _installed(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
