"""Which OpenGL backend MuJoCo uses: none for stepping states, EGL for pictures.

MuJoCo and dm_control read `MUJOCO_GL` once, at import. Stepping needs no OpenGL, and importing it for nothing costs
time, prints warnings on servers and opens the GPU, so the default here is none; pictures switch it on when asked for.
"""

import importlib
import os
import sys
import warnings

from dipole_ray.errors import EnvironmentUnavailable

DEBIAN_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri libgl1"  # what EGL rendering in software needs there
_DISABLED = ("", "disable", "disabled", "off", "false", "0")


def disable_rendering_by_default() -> None:
    """Set `MUJOCO_GL=disable` unless the user chose a backend. Call before the first import of mujoco."""
    # gymnasium imports GLFW for its viewer windows, and GLFW complains on every server without a screen.
    warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing")
    if not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "disable"


def enable_rendering() -> None:
    """Make a working OpenGL backend available in this process, EGL unless the user chose another.

    Modules that were imported with rendering switched off are loaded again, so that an environment made for
    stepping earlier in the same process does not forbid pictures later.

    Raises:
        EnvironmentUnavailable: If no context can be made; names the backend, the cause and the packages to install.
    """
    if os.environ.get("MUJOCO_GL", "").lower().strip() in _DISABLED:
        os.environ["MUJOCO_GL"] = "egl"
        os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    backend = os.environ["MUJOCO_GL"]
    try:
        gl_context = importlib.import_module("mujoco.gl_context")
        if not hasattr(gl_context, "GLContext"):
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
            f"OpenGL libraries ('apt-get install {DEBIAN_PACKAGES}' on Debian or Ubuntu), choose another backend with "
            "MUJOCO_GL=egl, osmesa or glfw, or leave rendering out"
        ) from error
