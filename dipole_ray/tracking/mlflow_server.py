"""MLflow's servers and databases: their addresses, how they are reached, and what they refuse for good."""

from __future__ import annotations

import logging
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from filelock import FileLock

from dipole_ray.errors import first_line
from dipole_ray.files.durable import commit_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment


def connect(uri: str) -> MlflowClient:
    """Return a client for `uri`, with MLflow's own retries, prints and log lines turned down.

    Importing mlflow takes seconds, hence in here and on the feeding thread.
    """
    # A refused connection must come back at once, for the thread has its own retries and a run to end.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow would tell its makers of our calls, with threads and a wait at exit that a run should not have.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It prints the trace of every refused write, such as a full disk's, which reaches us as an exception as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        _make_database(database)
    return MlflowClient(tracking_uri=uri)


def sqlite_uri(file: Path) -> str:
    """Return the address of an SQLite file, whatever its name."""
    return f"sqlite:///{str(file.resolve()).replace('%', '%25').replace('?', '%3F')}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite address, or None for a server."""
    path, _, _ = uri.removeprefix("sqlite:///").partition("?")
    return Path(unquote(path)).resolve() if uri.startswith("sqlite:///") else None


def experiment_of(client: MlflowClient, uri: str, name: str) -> Experiment | None:
    """Return an experiment, None if there is none; Refused where it was deleted, which no run can be added to."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
        restore = f"MLFLOW_TRACKING_URI={shlex.quote(redacted(uri))} {restore}"
        remedy = f"bring it back ({restore}), or choose another with tracking.experiment=NAME"
        raise Refused(f"the experiment '{name}' was deleted there", remedy)
    return found


class Refused(Exception):
    """MLflow is reached but takes nothing, until somebody mends what the second argument says how to."""


REFUSALS = {
    r"^(UNAUTHENTICATED|PERMISSION_DENIED|CUSTOMER_UNAUTHORIZED)\b": "set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those of a user who may write there",
    r"MLFLOW_ALLOW_FILE_STORE": "give a database, such as sqlite:////PATH/mlflow.db, in the place of a folder, or set "
    "MLFLOW_ALLOW_FILE_STORE=true",
    # Statuses of 400 on, without an answer of MLflow's own; 408, 425 and 429 ask to come again.
    r"^ENDPOINT_NOT_FOUND\b|not in a valid JSON format|error code (40[0-79]|41\d|42[0-46-8]|43\d|45\d|501) != 200": (
        "no MLflow answers there, but something else, such as a proxy: correct the address, or sign in where a page "
        "asks for it"
    ),
    r"InvalidUrl|Invalid url": "correct the address: write http://HOST:PORT",
    r"Unity Catalog tracking URI": "give the address of a tracking server, such as databricks or http://HOST:PORT",
    r"unsupported URI|UnsupportedModelRegistryStoreURI|Could not parse SQLAlchemy URL|Invalid database URI": "write "
    "http://HOST:PORT for a server, or sqlite:////PATH/mlflow.db",
    r"SSLError": "see whether the address begins with http or https, and name the server's certificate in "
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    r"No module named": "install what drives such a database, or give an address of the form http://HOST:PORT",
    r"Databricks.*credential": "install databricks-sdk and sign in to Databricks, or give another address",
    r"database schema|Can't locate revision": "the database is of another version of MLflow: 'mlflow db upgrade URI' "
    "brings an older one up to date",
    r"not a database|readonly database|unable to open database": "choose a file that is MLflow's and can be written",
    r"Permission denied|Not a directory|Read-only file|No such file|File exists|File name too long": "MLflow's files "
    "lie in a folder that cannot be written here: choose another address, or have the server take them "
    "(--artifacts-destination)",
}
"""What MLflow, or what lies below it, says of trouble that lasts, as patterns, and what mends it."""


def remedy_of(error: Exception) -> str:
    """Return what mends the trouble; empty for an outage, which passes by itself."""
    if isinstance(error, Refused):
        return str(error.args[1])
    text = f"{getattr(error, 'error_code', '')} {type(error).__name__} {error}"
    return next((remedy for pattern, remedy in REFUSALS.items() if re.search(pattern, text, re.DOTALL)), "")


def reason_of(error: Exception) -> str:
    """Return in words what went wrong, without credentials."""
    if isinstance(error, Refused):
        return str(error.args[0])
    cause = re.search(r"\(Caused by (.*)\)$", str(error))  # the rest are a page of addresses
    return redacted(f"{type(error).__name__}: {first_line(cause[1] if cause else error)}")


def _make_database(database: Path) -> None:
    """Make MLflow's database whole or not at all, by one process at a time.

    MLflow takes seconds to make its tables, one migration after the other; a second process that starts in between,
    or a kill, would leave a file that MLflow can never open again.
    """
    from mlflow import MlflowClient

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f".{database.name}.lock"), fallback_to_soft=False):
        if database.exists():
            return
        beside = database.with_name(f".{database.name}.new")
        for leftover in (beside, beside.with_name(f"{beside.name}-journal")):
            leftover.unlink(missing_ok=True)
        MlflowClient(tracking_uri=sqlite_uri(beside)).search_experiments(max_results=1)
        commit_file(beside, database)


def redacted(text: str) -> str:
    """Return a text with the user name and password of every address in it left out, for files, logs and screens."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)
