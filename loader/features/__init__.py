# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What this kernel offers, found by trying.

A probe makes something harmless (a program that is never attached, an attempt on an interface that does not
exist) and reads the kernel's answer; the version is never looked at. The answer is one of three: an attempt
that fails for another reason than the missing feature, above all for want of a capability, proves nothing.
Certain answers are kept for the life of the process, and by `save` for that of the boot (see
`loader.features.known`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loader.errors import KernelFeatureError
from loader.features import kinds, known
from loader.features.answer import Asked, Probe, Support
from loader.features.known import discard, forget, save
from loader.features.named import PROBES, Feature
from pybpfasm.kernel.enums import AttachType, Helper, LinkType, MapType, ProgType

if TYPE_CHECKING:
    from loader.features.parts import BtfPart, Isa

__all__ = [
    "Asked",
    "BtfPart",
    "Feature",
    "Isa",
    "Probe",
    "Support",
    "discard",
    "forget",
    "has_attach_type",
    "has_helper",
    "has_kfunc",
    "has_link_type",
    "has_map_type",
    "has_program_type",
    "probe",
    "probe_all",
    "require",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import `Isa` and `BtfPart` when they are asked for: `up` needs neither."""
    if name in ("BtfPart", "Isa"):
        from loader.features import parts

        return getattr(parts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def probe(asked: Asked) -> Probe:
    """Return what this kernel says about a :class:`Feature`, an :class:`Isa` or a :class:`BtfPart`.

    The attempt is made once. An inconclusive answer is not kept, so that it is asked again when the process
    has more rights.
    """
    kind = type(asked).__name__.lower()
    if isinstance(asked, Feature):
        return known.ask(f"{kind}/{asked.name}", asked.value, PROBES[asked])
    from loader.features.parts import part

    return known.ask(f"{kind}/{asked.name}", asked.value, lambda: part(asked))


def probe_all() -> dict[Feature, Probe]:
    """Return what this kernel says about every feature, in the order of :class:`Feature`."""
    return {feature: probe(feature) for feature in Feature}


def has_map_type(kind: MapType) -> Probe:
    """Return whether maps of a type can be made on this kernel."""
    return known.ask(f"map/{kind.name}", f"{kind.name} maps", lambda: kinds.map_type(kind))


def has_program_type(kind: ProgType) -> Probe:
    """Return whether programs of a type can be loaded."""
    return known.ask(f"program/{kind.name}", f"{kind.name} programs", lambda: kinds.program_type(kind))


def has_attach_type(kind: AttachType) -> Probe:
    """Return whether programs can be attached in a way."""
    return known.ask(f"attach/{kind.name}", f"{kind.name} hooks", lambda: kinds.attach_type(kind))


def has_link_type(kind: LinkType) -> Probe:
    """Return whether links of a type can be made."""
    return known.ask(f"link/{kind.name}", f"{kind.name} links", lambda: kinds.link_type(kind))


def has_helper(kind: ProgType, helper: Helper, attach_type: AttachType | None = None) -> Probe:
    """Return whether programs of a type, for an attach type where that matters, may call a helper."""
    at = f"/{attach_type.name}" if attach_type is not None else ""
    return known.ask(
        f"helper/{kind.name}{at}/{helper.name}",
        f"{helper.name} in {kind.name}",
        lambda: kinds.helper(kind, helper, attach_type),
    )


def has_kfunc(kind: ProgType, name: str) -> Probe:
    """Return whether programs of a type may call a kernel function."""
    return known.ask(f"kfunc/{kind.name}/{name}", f"{name} in {kind.name}", lambda: kinds.kfunc(kind, name))


def require(*features: Asked) -> None:
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
