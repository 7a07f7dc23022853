"""The tables of what adapters cost on a GPU."""

from __future__ import annotations

from typing import Any


def shown(times: dict[str, float]) -> str:
    return f"{times['median']:.2f} [{times['min']:.2f}, {times['max']:.2f}]"


def tables(result: dict[str, Any]) -> str:
    """Return all that was found, for a person."""
    updates, actions, agents = [], [], []
    for name, case in result["cases"].items():
        if "failed" in case:
            updates.append([name, case["failed"], *[""] * 5])
            continue
        for way, found in case["training"].items():
            if "failed" in found:
                updates.append([name, way, found["failed"], *[""] * 4])
                continue
            replay = found.get("captured", result["pefts_captured"])
            cells = [shown(found["eager_ms"]), replay.get("failed") or shown(replay["ms"])]
            cells += [
                f"{1e3 / replay['ms']['median']:.1f}" if "ms" in replay else "-",
                f"{found.get('peak_mib', 0):.0f}",
            ]
            apart = f"{replay['apart_from_eager_after_5']:.1e}" if "ms" in replay else "-"
            updates.append([name, way, *cells, f"{found['gradients_from_two_passes']:.1e}, {apart}"])
        for states, ways in case["acting"].items():
            for way, found in ways.items():
                if "failed" in found:
                    actions.append([name, states, way, found["failed"], "", ""])
                    continue
                apart = f"{found['from_merged_and_cached']:.1e}, {found['captured_from_eager']:.1e}"
                actions.append([name, states, way, shown(found["eager_ms"]), shown(found["captured_ms"]), apart])
    for rank, found in result["agents"].items():
        if "parameters" not in found:
            agents.append([rank, found["failed"], *[""] * 6])
            continue
        keys = ("parameters", "trained", "optimizer_bytes", "published_bytes", "updates_per_s")
        peak, replayed = found.get("peak_bytes", 0) / 2**20, found.get("captured_updates_per_s", float("nan"))
        millions = [found[key] / (1e6 if index < 2 else 2**20 if index < 4 else 1) for index, key in enumerate(keys)]
        agents.append(
            [rank if rank != "0" else "full", *(f"{each:.2f}" for each in millions), f"{replayed:.2f}", f"{peak:.0f}"]
        )
    heads = (
        ["case", "way", "eager ms", "captured ms", "updates/s", "peak MiB", "gradients apart, captured apart"],
        ["case", "states", "way", "eager ms", "captured ms", "apart: from merged and cached, captured"],
        ["r", "weights (M)", "trained (M)", "optimizer MiB", "version MiB", "updates/s", "captured", "peak MiB"],
    )
    parts = zip(
        ("Updates of both adapters", "Ten candidates a state, ten steps, both fields", "Whole agents"),
        heads,
        (updates, actions, agents),
        strict=True,
    )
    return "\n\n".join(
        f"## {title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
        for title, head, rows in parts
    )
