"""What end_to_end.py and record.py print of a whole training."""

from __future__ import annotations

from typing import Any


def training_lines(data: str, name: str, found: dict[str, Any]) -> list[str]:
    """A whole training: ours, what it came to, and the baseline under each allocator with its multiples of ours."""
    ours = found["ours"]
    runs = [("ours", ours, None), *((f"baseline [{a}]", other, ours) for a, other in found["baseline"].items())]
    return [f"{data}, {name}: {who}: {text}" for who, run, of in runs for text in (_times(run, of), *_result(run))]


def _result(found: dict[str, Any]) -> list[str]:
    """What a training came to that was not only timed."""
    if found["stopped"] == "timed":
        return []
    if found["test"] is None:
        return [f"not converged: the time was up after {found['epochs']} epochs"]
    metrics = ", ".join(f"{metric} {found['test'][metric]:.4f}" for metric in ("recall@20", "ndcg@20"))
    ended = "validation" if found["stopped"] == "patience" else "the epochs given"
    whole = f"{found['start_to_test_s']:.4g} s from start to test, {found['epochs']} epochs, ended by {ended}"
    return [f"{whole}, best {found['best_epoch']}: {metrics}"]


def _times(found: dict[str, Any], ours: dict[str, Any] | None = None) -> str:
    """Medians, with `ours` as multiples of it too."""

    def times(seconds: float, of_ours: float | None) -> str:
        return f"{seconds:.4g} s" + (f" ({seconds / of_ours:.3g} x)" if of_ours else "")

    named = {"an epoch": "epoch_s", "a warm-up epoch": "warm_up_epoch_s", "a validation": "validation_s"}
    parts = []
    for text, key in named.items():
        if found[key]:
            other = ours[key] if ours else None
            parts.append(f"{text} {times(found[key]['median'], other['median'] if other else None)}")
    parts.append(f"the first {found['first_epoch_s']:.4g} s")
    if ours and found["converged_at_our_epochs_s"]:
        whole = times(found["converged_at_our_epochs_s"], ours["start_to_test_s"])
        parts.append(f"our epochs and validations times these {whole}")
    parts += [f"peak {found[key]:.0f} MiB" for key in ("peak_mib", "peak_device_mib") if key in found]
    return ", ".join(parts)
