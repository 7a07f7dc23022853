"""Which OpenGL backend MuJoCo uses: none for stepping states; for pictures EGL, or OSMesa where there is no EGL.

MuJoCo and dm_control read `MUJOCO_GL` once, at import. Stepping needs no OpenGL, and importing it for nothing costs
time, prints warnings on servers and opens the GPU, so the default here is none; pictures switch it on when asked for,
and observations that are pictures do.
"""

import ctypes.util
import gc
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dipole_ray.errors import EnvironmentUnavailable

DEBIAN_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri libgl1"  # what EGL rendering in software needs there
OSMESA_PACKAGES = "libosmesa6 libgl1"  # and OSMesa, which needs no device at all
BACKENDS = {"egl": "EGL", "osmesa": "OSMesa"}  # those without a screen, and the library of each
_DRAWING = ("mujoco_rendering", "renderer", "gl_context")  # modules of gymnasium and MuJoCo that draw
_DISABLED = ("", "disable", "disabled", "off", "false", "0")


def disable_rendering_by_default() -> None:
    """Set `MUJOCO_GL=disable` unless the user chose a backend. Call before the first import of mujoco."""
    # gymnasium imports GLFW for its viewer windows, and GLFW complains on every server without a screen.
    warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing")
    if not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "disable"


def is_disabled() -> bool:
    """Return whether rendering is switched off in this process."""
    return os.environ.get("MUJOCO_GL", "").lower().strip() in _DISABLED


def lacks_rendering(error: BaseException) -> bool:
    """Return whether an error is that of drawing while rendering is switched off."""
    frames = traceback.extract_tb(error.__traceback__)
    return is_disabled() and any(Path(frame.filename).stem in _DRAWING for frame in frames)


def likely_backend() -> str:
    """Return the first of the backends without a screen whose library is here; EGL where none is."""
    return next((name for name, library in BACKENDS.items() if ctypes.util.find_library(library)), "egl")


def enable_rendering() -> None:
    """Make a working OpenGL backend available in this process: EGL, else OSMesa, unless the user chose another.

    Modules that were imported with rendering switched off, or for windows on a screen, are loaded again, so that an
    environment made for stepping earlier in the same process does not forbid pictures later.

    Raises:
        EnvironmentUnavailable: If no context can be made; names the backend, the cause and the packages to install.
    """
    if is_disabled():
        os.environ["MUJOCO_GL"] = likely_backend()
        os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
    backend = os.environ["MUJOCO_GL"]
    try:
        gl_context = importlib.import_module("mujoco.gl_context")
        made_by = getattr(gl_context, "GLContext", None)  # none, or of the default, where mujoco was imported before
        if made_by is None or made_by.__module__ != f"mujoco.{backend}":
            gl_context = importlib.reload(gl_context)
            if "dm_control._render" in sys.modules:
                importlib.reload(sys.modules["dm_control._render"])
        # Some backends hand out a context that fails only when it is used: render an empty world.
        import mujoco

        renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16)
        renderer.render()
        renderer.close()
    except Exception as error:  # PyOpenGL, GLFW and MuJoCo each fail in their own way, down to an AttributeError
        raise EnvironmentUnavailable(
            f"rendering with MUJOCO_GL={backend} does not work here ({type(error).__name__}: {error}); install the "
            f"OpenGL libraries (on Debian or Ubuntu 'apt-get install {DEBIAN_PACKAGES}' for EGL, or {OSMESA_PACKAGES} "
            "for OSMesa), choose another backend with MUJOCO_GL=egl, osmesa or glfw ('dipole doctor' tries them), or "
            "leave rendering out"
        ) from error


@contextmanager
def undisturbed() -> Iterator[None]:
    """Collect no garbage in the block, in which something is drawn.

    A renderer that is collected takes the current OpenGL context away from its thread, whose it ever is; what is drawn
    after that is black, and nothing says so.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
