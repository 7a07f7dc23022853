"""Run a sweep and photograph its page in MLflow.

    python -m tests.browser.screenshot --out docs/images/mlflow-sweep.png smoke sweep.rungs=8 ...

The upper half is the list of runs with the trials' curves, the lower half the first surface. Where `--link` gives the
address that an earlier `dipole sweep` printed, that one is photographed.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser.mlflow_page import MlflowPage, chromium, printed_link, sweep
from tests.chaos.tracking_server import Server

WIDTH, UPPER, LOWER = 1400, 980, 600
COLOURS = 256
SHOWN = "return"
"""What is searched for among the charts."""


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="what `dipole sweep` is given")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--link", help="address of a sweep that is there already")
    arguments = parser.parse_args()
    if arguments.link:
        photograph(arguments.link, arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "server")
        server.start()
        try:
            server.wait()
            ended = sweep(server, Path(folder) / "user", *arguments.words, timeout=3600)
            assert ended.returncode == 0, ended.stderr
            print(ended.stdout)
            photograph(printed_link(ended.stdout), arguments.out)
        finally:
            server.kill()


def photograph(link: str, out: Path) -> None:
    """Write the picture of the sweep at an address."""
    with chromium() as browser:
        visit = MlflowPage(browser, link, width=WIDTH, height=UPPER)
        visit.open_runs()
        visit.expand(next(iter(visit.runs())))
        visit.show_charts()
        visit.search_charts(SHOWN)
        visit.hide_sidebar()
        upper = visit.photograph()
        visit.open_start()
        visit.page.set_viewport_size({"width": WIDTH, "height": LOWER})
        visit.open_tab("Artifacts")
        surfaces = visit.artifacts("pictures")
        visit.show_artifact(next(path for path in surfaces if "surface" in path))
        lower = visit.photograph()
        visit.close()
    picture = Image.new("RGB", (WIDTH, UPPER + LOWER))
    for half, top in ((upper, 0), (lower, UPPER)):
        picture.paste(Image.open(io.BytesIO(half)).convert("RGB"), (0, top))
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main()
