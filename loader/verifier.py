# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Reading the verifier's log, and :class:`VerifierError`, which tells a rejection in Python lines.

At level 1 the log holds the path that failed: one instruction a line (``7: (61) r0 = *(u32 *)(r1 +400)``),
register states (behind an instruction, or at a branch as ``from 5 to 9: R0=...``), source lines as comments
(``; text @ file:line`` from 6.9, only the text before), the reason, and a summary. Formats from 5.10 to 6.18
are known; a line that is none of these is taken for a message, so that nothing of what it says is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from loader.errors import BpfError, LoaderError
from pybpfasm.diagnosis import Diagnosis, diagnose, in_words

if TYPE_CHECKING:
    from pybpfasm.errors import SourceLocation
    from pybpfasm.program import ProgramSpec

__all__ = ["Comment", "Step", "VerifierError", "VerifierLog", "parse_log", "parse_state"]

PATH_LINES = 6  # how many Python lines of the failing path an error shows


@dataclass(frozen=True, slots=True)
class Comment:
    """A source line in the log.

    ``filename`` and ``line`` are empty and 0 where the kernel does not print them.
    """

    text: str
    filename: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction that the verifier walked over: slot, opcode byte, text, source line, what was known.

    ``before`` are the registers and stack slots as far as the log has told them when the instruction came
    (``{"R1": "ctx()", "fp-8": "mmmmmmmm"}``), ``changed`` those that it printed behind the instruction.
    """

    slot: int
    opcode: int
    text: str
    comment: Comment | None
    before: Mapping[str, str]
    changed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class VerifierLog:
    """A parsed log: the steps, the messages behind the last one, the summary (``processed 5 insns ...``)."""

    steps: tuple[Step, ...]
    messages: tuple[str, ...]
    summary: str = ""
    state: Mapping[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """Why the program was rejected, in the verifier's words; empty if it says nothing."""
        return "; ".join(self.messages)

    @property
    def slot(self) -> int | None:
        """The slot of the instruction to blame: one that the reason names, else the last one of the path."""
        for message in self.messages:
            # "unreachable insn 5", "jump out of range from insn 1 to 30", "back-edge from insn 9 to 2"
            if found := re.search(r"\binsn (\d+)\b", message):
                return int(found[1])
        return self.steps[-1].slot if self.steps else None

    @property
    def processed(self) -> int | None:
        """How many instructions the verifier looked at, or None where it does not say."""
        found = re.match(r"processed (\d+) insns", self.summary)
        return int(found[1]) if found else None


_STEP = re.compile(r"(\d+): \(([0-9a-f]{2})\) (.*)")
_STATE_HERE = re.compile(r"\d+: (?:frame\d+: )?((?:R\d|fp-|refs=).*)")
_STATE_BRANCH = re.compile(r"from (\d+) to (\d+)(?: \(speculative execution\))?: (.*)")
# Behind an instruction: what it changed; for a branch of which one way is impossible, all that is known then.
_CHANGED = re.compile(r"\s*; ((?:frame\d+: )?(?:R\d+|fp-\d+|refs=|cb\b).*)")
_ONE_WAY = re.compile(r"\s+\d+: ((?:frame\d+: )?R\d.*)")
_COMMENT = re.compile(r"; (.*?)(?: @ (\S+):(\d+))?\s*")
_CELL = re.compile(
    r"(?<![\w-])(R\d+|fp-\d+)(?:_\w+)?=((?:[^\s()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*)"
)
_SETS = re.compile(r"[rw](\d+) \S*=")
_SUMMARY = re.compile(r"processed \d+ insns\b.*")
# What the verifier tells of its own work: precision tracking, liveness, calls, times.
_NOISE = re.compile(
    r"func#\d+ @\d+|last_idx \d+|first_idx \d+|regs=[0-9a-f]+ stack=|parent (?:didn't|already|state)"
    r"|mark_precise:|Live regs before|propagating |verification time |stack depth |(?:caller|callee):$"
    r"|to caller at \d+|returning from callee:|\d+: safe|Validating |Func#\d+ |Global function "
    r"|\s*[0-9.]+: [0-9a-f ]{20,}|arg#\d+ reference type|(?:cur|old) state:"
)


def parse_state(text: str) -> dict[str, str]:
    """Parse registers and stack slots as the verifier prints them: ``R1=ctx() R10=fp0 fp-8=mmmmmmmm``."""
    return {match[1]: match[2] for match in _CELL.finditer(text)}


def parse_log(text: str) -> VerifierLog:
    """Parse a verifier log of level 1 or 2. A log that was cut off gives what it holds."""
    steps: list[Step] = []
    messages: list[str] = []
    state: dict[str, str] = {}
    comment: Comment | None = None
    summary = ""
    for raw in text.splitlines():
        line = raw.rstrip()
        if not line:
            continue
        if match := _STEP.fullmatch(line):
            body, changed = match[3], {}
            if found := _CHANGED.search(body) or _ONE_WAY.search(body):
                body, changed = body[: found.start()], parse_state(found[1])
            steps.append(Step(int(match[1]), int(match[2], 16), body.rstrip(), comment, dict(state), changed))
            # What an instruction sets and the log (of Linux 5.10, above all) does not tell is not known.
            if (sets := _SETS.match(body)) and f"R{sets[1]}" not in changed:
                state.pop(f"R{sets[1]}", None)
            state.update(changed)
            if body.startswith("call "):
                for lost in ("R1", "R2", "R3", "R4", "R5"):
                    state.pop(lost, None)
            messages.clear()
            comment = None
        elif line.startswith("; ") and (match := _COMMENT.fullmatch(line)):
            comment = Comment(match[1], match[2] or "", int(match[3] or 0))
        elif match := _STATE_HERE.fullmatch(line):
            state = parse_state(match[1])
        elif match := _STATE_BRANCH.fullmatch(line):
            state = parse_state(match[3])
        elif _SUMMARY.match(line):
            summary = line
        elif re.match(r"\s*(?:frame\d+: )?R\d+(?:_\w+)?=", line):
            state.update(parse_state(line))
        elif not _NOISE.match(line):
            messages.append(line.strip())
    return VerifierLog(tuple(steps), tuple(messages), summary, state)


class _Spec(Protocol):
    @property
    def name(self) -> str: ...
    def location(self, slot: int) -> SourceLocation | None: ...


class VerifierError(LoaderError):
    """The verifier rejected a program. ``str()`` shows why, at which Python line, and how it got there.

    ``log`` is the whole log, ``parsed`` its parts, ``reason`` the verifier's own words, ``diagnosis`` what
    they mean (None if they are not known), ``location`` the Python line (None if it is not known), ``errno``
    what PROG_LOAD answered. ``hint`` says what to do.
    """

    def __init__(self, spec: _Spec, log: str, error: BpfError | None = None) -> None:
        self.name = spec.name
        self.log = log
        self.parsed = parse_log(log)
        self.errno = error.errno if error is not None else None
        self.reason = self.parsed.reason or (error.strerror if error is not None else "") or "no reason given"
        self.diagnosis: Diagnosis | None = diagnose(self.parsed.messages)
        slot = self.parsed.slot
        self.slot = slot
        self.location = None if slot is None else spec.location(slot)
        missing: Mapping[int, str] = getattr(spec, "missing", {})
        if slot is not None and slot in missing:
            self.diagnosis = Diagnosis(
                "core-missing",
                self.reason,
                missing[slot],
                "declare it as this kernel has it, or ask core_exists() first and go another way if it is 0",
            )
        advice = "change the program at that line" if self.diagnosis is None else self.diagnosis.advice
        super().__init__(self._describe(spec), hint=f"{advice}. The whole log is in this error's `log`")

    def _describe(self, spec: _Spec) -> str:
        lines = [f"the verifier rejected program {self.name!r}: {self.reason}"]
        step = self._step()
        where = self._where(spec, self.slot, step)
        if where:
            lines.append(f"  at {where}")
            caller = None if self.location is None else self.location.caller
            while caller is not None:
                lines.append(f"    called from {caller.filename}:{caller.line}: {caller.text}")
                caller = caller.caller
        if step is not None:
            lines.append(f"  instruction {step.slot}: {step.text}")
        elif self.slot is not None:
            lines.append(f"  instruction {self.slot}")
        for register, value in self.registers().items():
            words = in_words(value)
            lines.append(f"    {register} = {value}" + (f"   {words}" if words else ""))
        if self.diagnosis is not None:
            lines.append(f"  why: {self.diagnosis.why}")
        lines += [f"  {line}" for line in self._related(spec)]
        if acquired := re.search(r"alloc_insn=(\d+)", self.reason):
            lines.append(f"  acquired at {self._where(spec, int(acquired[1]), None) or 'an unknown line'}")
        path = self.path(spec)
        if len(path) > 1:
            lines.append("  the way there:")
            lines += [f"    {entry}" for entry in path]
        return "\n".join(lines)

    def _related(self, spec: _Spec) -> list[str]:
        """Return other lines that have to do with it, as a check without the log finds them."""
        if self.slot is None or not hasattr(spec, "instructions") or not hasattr(spec, "functions"):
            return []  # bare instructions, as probes load them
        from pybpfasm.check import check

        found = [finding for finding in check(cast("ProgramSpec", spec)) if finding.slot == self.slot]
        return [
            f"{what} {location}: {location.text}"
            for finding in found
            for what, _, location in finding.related
            if location is not None
        ]

    def _step(self) -> Step | None:
        """The last step at the slot to blame."""
        return next((step for step in reversed(self.parsed.steps) if step.slot == self.slot), None)

    def registers(self) -> dict[str, str]:
        """Return what was known of the registers and stack slots that the reason or the instruction names."""
        step = self._step()
        if step is None:
            return {}
        named = re.findall(r"\b[Rrw](\d+)\b", f"{self.reason} {step.text}")
        wanted = [f"R{number}" for number in dict.fromkeys(named)]
        known = dict(step.before)
        # The log prints what an instruction sets; what a call takes away (packet pointers) it does not.
        for number, kind in re.findall(r"\bR(\d+) invalid mem access '(\w+)'", self.reason):
            before = known.get(f"R{number}", "")
            if not before.startswith(kind) and not re.match(r"P?-?\d", before):
                known[f"R{number}"] = f"{kind}()"
        # How much of a packet is checked is printed with the reason only.
        for number, checked in re.findall(r"\bR(\d+)\(id=\d+,off=-?\d+,r=(-?\d+)\)", self.reason):
            before = known.get(f"R{number}", "pkt(r=0)")
            known[f"R{number}"] = re.sub(r"\br=-?\d+", f"r={checked}", before)
        return {
            register.lower(): known[register]
            for register in sorted(wanted, key=lambda r: int(r[1:]))
            if register in known and register != "R10"
        }

    def path(self, spec: _Spec, limit: int = PATH_LINES) -> list[str]:
        """Return the last Python lines that the verifier went through, each once in a row, oldest first."""
        shown: list[str] = []
        comment: Comment | None = None
        for step in self.parsed.steps:
            comment = step.comment or comment
            text = self._where(spec, step.slot, step, comment)
            if text and (not shown or shown[-1] != text):
                shown.append(text)
        return shown[-limit:]

    @staticmethod
    def _where(spec: _Spec, slot: int | None, step: Step | None, comment: Comment | None = None) -> str:
        location = None if slot is None else spec.location(slot)
        if location is not None:
            text = f"{location.filename}:{location.line}"
            return f"{text}: {location.text}" if location.text else text
        seen = step.comment if step is not None and step.comment is not None else comment
        if seen is not None and seen.filename:
            return f"{seen.filename}:{seen.line}: {seen.text}"
        return ""
