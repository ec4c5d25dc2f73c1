# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What this kernel offers, found by trying.

A probe makes something harmless (a program that is never attached, an attempt on an interface that does not
exist) and reads the kernel's answer; the version is never looked at. The answer is one of three: an attempt
that fails for another reason than the missing feature, above all for want of a capability, proves nothing.
Certain answers are kept for the life of the process, and by `save` for that of the boot (see
`loader.features.known`).
"""

from __future__ import annotations

from loader.errors import KernelFeatureError
from loader.features import known
from loader.features.answer import Asked, Probe, Support
from loader.features.known import discard, forget, save
from loader.features.named import PROBES, Feature, helper
from pybpfasm.kernel.enums import AttachType, Helper, ProgType

__all__ = [
    "Asked",
    "Feature",
    "Probe",
    "Support",
    "discard",
    "forget",
    "has_helper",
    "probe",
    "probe_all",
    "require",
    "save",
]


def probe(feature: Feature) -> Probe:
    """Return what this kernel says about a feature; the attempt is made once.

    An inconclusive answer is not kept, so that it is asked again when the process has more rights.
    """
    return known.ask(f"feature/{feature.name}", feature.value, PROBES[feature])


def probe_all() -> dict[Feature, Probe]:
    """Return what this kernel says about every feature, in the order of :class:`Feature`."""
    return {feature: probe(feature) for feature in Feature}


def has_helper(type: ProgType, helper_id: Helper, attach_type: AttachType | None = None) -> Probe:
    """Return whether programs of a type may call a helper on this kernel."""
    at = f"/{attach_type.name}" if attach_type is not None else ""
    return known.ask(
        f"helper/{type.name}/{helper_id.name}{at}",
        f"{helper_id.name} in {type.name}",
        lambda: helper(type, helper_id, attach_type),
    )


def require(*features: Feature) -> None:
    """Raise :class:`~loader.errors.KernelFeatureError` for the first feature that the kernel certainly lacks.

    An inconclusive probe passes: what needs the feature will then say more clearly what is wrong.
    """
    for feature in features:
        found = probe(feature)
        if found.support is Support.UNSUPPORTED:
            raise KernelFeatureError(
                f"this kernel lacks {feature.value}: {found.reason}",
                feature=feature.name,
                hint="use a newer kernel; the version in parentheses is the first that has it",
            )
